"""`export` of runs that are no plain classifiers: what reads the export again gives the run's own numbers."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny_clip import write_clip, write_folders
from torch import nn

import warmstart as ws
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.methods.export.export import _with_thresholds
from warmstart.methods.export.hub_folders import write_timm
from warmstart.methods.export.program_file import write_program
from warmstart.models.weights import read_weights

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
COMMON: dict[str, Any] = {
    "image_size": "32",
    "batch_size": 8,
    "max_steps": 2,
    "lr": 0.01,
    "workers": 0,
    "device": "cpu",
    "tensorboard": False,
    "pictures": False,
}


@pytest.fixture(scope="module")
def labels(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with two labels, each 0 or 1, of every picture."""
    file = tmp_path_factory.mktemp("labels") / "tags.csv"
    rows = [
        (path, int(path.parent.name != "ant"), int(path.stem[-1] in "02468"), split)
        for number, path in enumerate(sorted(overlapping.glob("*/*.png")))
        for split in (("train", "train", "val", "test")[number % 4],)
    ]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "bright", "even", "split"), *rows])
    return file


@pytest.fixture(scope="module")
def tags(labels: Path) -> str:
    """A multi-label run that was started from a pickle, with thresholds of its own."""
    torch.manual_seed(0)
    source = labels.with_name("source.pt")
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), source)
    return ws.finetune(
        "timm:test_resnet", str(labels), weights=str(source), label_columns="bright,even",
        output_dir=str(labels.with_name("run")), **COMMON,
    ).run  # fmt: skip


def test_sets_of_labels_are_read_again_with_their_thresholds(tags: str, labels: Path, tmp_path: Path) -> None:
    """What a folder of timm, or the source's own container, has no word for is in the card beside it."""
    own, back = ws.evaluate(tags, split="test"), tmp_path / "back.pt"
    write_timm(_with_thresholds(restore(tags, CPU)), tmp_path / "folder")
    ws.export(tags, to="source", output=str(back), num_images=8)
    for name in ("folder", "back.pt"):
        found = ws.evaluate(str(tmp_path / name), str(labels), label_columns="bright,even", split="test")
        assert found.metrics == pytest.approx(own.metrics, abs=1e-5), name
        np.testing.assert_allclose(found.task.cuts, own.task.cuts)
    # Weights that another program has written there since are not what the card speaks of.
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), back)
    other = read_weights(back)
    assert (other.classes, other.thresholds, other.multi_label) == (None, None, False)


def test_what_holds_no_weights_is_told_from_a_damaged_file(tags: str, tmp_path: Path) -> None:
    write_program(restore(tags, CPU), tmp_path / "model.pt2")
    shutil.copy(tmp_path / "model.pt2", tmp_path / "model.pt")
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    with pytest.raises(UserError, match=r"is an ONNX graph, which .* no layers to train or change"):
        ws.compress(str(tmp_path / "model.onnx"), data="anything", device="cpu")
    for name in ("model.pt2", "model.pt"):
        with pytest.raises(UserError, match=r"is a program of torch\.export, not weights") as caught:
            ws.evaluate(str(tmp_path / name), data="anything")
        assert "--to onnx" in caught.value.fix


def test_a_source_that_is_no_file_has_a_way_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", steps=0)
    write_folders(tmp_path / "shapes", {"train": 4, "val": 2, "test": 2}, seed=0)
    run = ws.finetune(
        f"hf:{tmp_path / 'clip'}", str(tmp_path / "shapes"), text_head="linear",
        output_dir=str(tmp_path / "run"), **{**COMMON, "max_steps": 1},
    ).run  # fmt: skip
    with pytest.raises(UserError, match="was started from pretrained weights") as caught:
        ws.export(run, to="source")
    assert caught.value.fix == "--to safetensors"  # transformers has no class with this classifier


class Branching(nn.Module):
    """A user's own module, which looks at the numbers that pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu().mean((2, 3))
        return self.head(x * 2 if x.max() > 100 else x)


def test_an_object_goes_where_its_code_is_not_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    data, module = {split: (pixels, np.arange(12) % 2) for split in ("train", "val")}, Branching()
    run = ws.finetune(module, data, output_dir=str(tmp_path / "run"), **{**COMMON, "image_size": "8"}).run
    for to in ("onnx", "torch-export"):
        with pytest.raises(UserError, match=r"cannot trace it .*in forward: return self\.head") as caught:
            ws.export(run, to=to, module=module, data=data)
        assert "its weights lie in the run, checkpoints" in caught.value.fix
    for to, way in (("safetensors", "model.safetensors has the weights"), ("source", "--to onnx")):
        with pytest.raises(UserError) as caught:
            ws.export(run, to=to, module=module, data=data)
        assert way in caught.value.fix
