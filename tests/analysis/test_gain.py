"""What a run changed: paired with the predictions of step 0, on the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart.analysis.gain import Gain, measure_gains
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions, write_predictions
from warmstart.stats import mcnemar_p


def test_gains_are_the_difference_of_the_same_images(small_run: Path) -> None:
    gains, (result,) = measure_gains(small_run, torch.device("cpu"), workers=0)
    assert [gain.split for gain in gains] == ["val", "test"] and result.split == "test"
    start = read_predictions(small_run / "predictions" / "test@0.parquet")
    before = (start.scores.argmax(axis=1) == start.targets).mean()
    after = (result.outputs.argmax(axis=1) == result.targets).mean()
    assert gains[1].difference == pytest.approx(after - before)
    assert gains[1].start["accuracy"] == pytest.approx(before)
    assert gains[1].low <= gains[1].difference <= gains[1].high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "cannot be told"),
        (0.0, 0.1, "cannot be told"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, high: float, verdict: str) -> None:
    assert verdict in gain(low, high, p=0.01).verdict


def gain(low: float, high: float, p: float, split: str = "test", best_step: int = 7) -> Gain:
    fixed, broken = (0, 4) if high < 0 else (4, 0)
    return Gain("accuracy", (low + high) / 2, low, high, fixed, broken, p, split, 40, {}, {}, best_step)


def test_few_changed_answers_prove_nothing() -> None:
    """4 fixed and none broken of 300: the bootstrap excludes 0, the exact test (p = .125) does not."""
    assert "cannot be told" in gain(0.0033, 0.0267, p=mcnemar_p(4, 0)).verdict


def test_what_was_chosen_on_val_is_said_to_be_too_kind_and_a_kept_start_has_its_own_sentence() -> None:
    assert "chosen on these samples" in gain(0.1, 0.2, p=0.001, split="val").verdict
    assert "the start was kept" in gain(0.0, 0.0, p=1.0, best_step=0).verdict


def test_changed_samples_are_refused(small_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    path = copy / "predictions" / "val@0.parquet"
    old = read_predictions(path)
    path.write_bytes(
        write_predictions([f"x{i}" for i in old.ids], old.targets, np.array(old.scores), old.classes)
    )
    with pytest.raises(UserError, match="the val samples have changed"):
        measure_gains(copy, torch.device("cpu"), workers=0)
