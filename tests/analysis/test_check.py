"""`check` loads, forwards three batches, and says what looks wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import warmstart as ws
from warmstart.models.builtin.fashion_cnn import FashionCNN


def test_check_of_a_run_and_of_a_bare_file(small_run: Path, tmp_path: Path) -> None:
    data = str(small_run.parent / "data")
    found = ws.check(str(small_run), data, batch_size=8)
    assert found.num_samples == 24 and found.classes == ("cat", "dog", "owl")
    assert found.architecture == "builtin:fashion_cnn"
    assert [block["name"] for block in found.blocks] == ["conv1", "conv2", "conv3", "fc1", "head"]
    assert sum(block["parameters"] for block in found.blocks) == found.num_parameters
    torch.save(FashionCNN(3).state_dict(), tmp_path / "bare.pt")
    bare = ws.check(str(tmp_path / "bare.pt"), data, image_size="16")
    assert bare.classes is None and any("names no classes" in note for note in bare.notes)
    assert "input 16x16" in bare.text()


def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, pictures: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "data", {"cat": 4, "dog": 4})
    state = FashionCNN(2).state_dict()
    state["fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    found = ws.check(str(tmp_path / "nan.pt"), str(tmp_path / "data"), image_size=16)
    assert any("NaN" in note and "fc1.weight" in note for note in found.notes)


def test_new_classes_are_no_obstacle(small_run: Path, tmp_path: Path, pictures: Callable[..., None]) -> None:
    """Data with other classes is the normal case before fine-tuning."""
    pictures(tmp_path / "data", {"cat": 4, "dog": 4})
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "lynx")
    found = ws.check(str(small_run), str(tmp_path / "data"))
    assert found.metrics is None and found.seconds_per_batch > 0
    assert any("lynx" in note and "finetune" in note for note in found.notes)
    assert "no accuracy" in found.text()
