"""Evaluation is validation's own path, and its tables say what was counted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import warmstart as ws
from warmstart.analysis.evaluate import map_interval
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.run import reader
from warmstart.tasks.multilabel import MultiLabel


def test_evaluating_val_gives_validations_own_numbers(small_run: Path) -> None:
    run = reader.open_run(small_run)
    best = run.pointer("BEST")
    row = next(r for r in run.evals.rows if r["split"] == "val" and r["step"] == best and "kind" not in r)
    found = ws.evaluate(str(small_run), split="val").metrics
    assert found == {name: row[name] for name in found}, "to the bit, at equal batches"
    other = ws.evaluate(str(small_run), split="val", batch_size=3).metrics
    assert other == pytest.approx(found, abs=1e-6)


def test_tables_and_pictures_of_an_evaluation(small_run: Path, tmp_path: Path) -> None:
    found = ws.evaluate(str(small_run), split="val,test", output_dir=str(tmp_path / "out"))
    assert found.num_samples == 12
    with (tmp_path / "out" / "confusion.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == ["cat", "dog", "owl"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 12 and counts.trace() / 12 == found.metrics["accuracy"]
    kept = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert kept.ids == found.ids and kept.classes == ("cat", "dog", "owl")
    assert np.allclose(kept.scores.sum(axis=1), 1, atol=1e-5)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["metrics"] == found.metrics
    for name in ("confusion.png", "calibration.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_other_data_are_matched_by_class_name(
    small_run: Path, tmp_path: Path, pictures: Callable[..., None]
) -> None:
    """Data that lack a class of the model must not shift the numbers of the others."""
    pictures(tmp_path / "owls", {"owl": 6}, seed=1)
    found = ws.evaluate(str(small_run), str(tmp_path / "owls"))
    assert set(found.targets.tolist()) == {2}
    assert found.split == "all" and found.num_samples == 6
    assert found.folder is not None and "-owls-" in found.folder


def test_classes_the_model_does_not_have_are_refused(small_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_run.parent / "data", tmp_path / "data"))
    (folder / "dog").rename(folder / "dgo")
    with pytest.raises(
        UserError, match=r"classes that the model does not know: dgo(.|\n)*Did you mean 'dog'"
    ):
        ws.evaluate(str(small_run), str(folder))


def test_what_is_not_the_runs_own_result_is_not_recorded_as_such(small_run: Path) -> None:
    rows = len(reader.open_run(small_run).evals.rows)
    folder = small_run / "evaluations"
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    found = ws.evaluate(str(small_run), split="test", mean=".9", std=".1")
    assert found.folder is None
    assert len(reader.open_run(small_run).evals.rows) == rows
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_an_output_folder_in_use_is_refused(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("precious")
    for name in ("used", "used/mine.txt"):
        with pytest.raises(UserError, match="is in use"):
            ws.evaluate(str(small_run), split="test", output_dir=str(tmp_path / name))


def test_the_same_data_at_another_place_are_still_the_runs_own(small_run: Path, tmp_path: Path) -> None:
    """Otherwise the training images would be counted among the images to test on."""
    moved = shutil.copytree(small_run.parent / "data", tmp_path / "moved")
    found = ws.evaluate(str(small_run), str(moved))
    assert (found.split, found.num_samples) == ("test", 6)
    assert found.metrics == ws.evaluate(str(small_run), split="test").metrics


def test_unreadable_images_of_other_data_are_named(
    small_run: Path, tmp_path: Path, pictures: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path / "new", {"cat": 3, "owl": 3}, seed=2)
    (tmp_path / "new" / "cat" / "0.png").write_bytes(b"broken")
    found = ws.evaluate(str(small_run), str(tmp_path / "new"))
    assert found.num_samples == 5 and found.unreadable[0][0] == "cat/0.png"
    assert "1 unreadable images are left out: cat/0.png" in caplog.text


def test_weights_without_class_names_warn_that_order_is_assumed(
    small_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(FashionCNN(3).state_dict(), tmp_path / "bare.pt")
    ws.evaluate(str(tmp_path / "bare.pt"), str(small_run.parent / "data"), image_size=16)
    assert "output 0 as 'cat', output 1 as 'dog', output 2 as 'owl'" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_leave_no_interval_and_no_thresholds(value: float) -> None:
    task, generator = MultiLabel(("a", "b")), np.random.default_rng(0)
    targets = (generator.random((40, 2)) > 0.5).astype(np.uint8)
    logits = generator.normal(size=(40, 2)).astype(np.float32)
    assert np.isfinite(map_interval(task, logits, targets)).all()
    assert task.with_best_thresholds(logits, targets).thresholds is not None
    logits[3, 0] = value
    assert np.isnan(map_interval(task, logits, targets)).all()
    logits[3, 0] = np.nan
    assert task.with_best_thresholds(task.scores(logits), targets) is task
