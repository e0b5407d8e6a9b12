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
from sklearn.metrics import classification_report

import warmstart as ws
from warmstart.analysis import evaluation_report
from warmstart.analysis.evaluate import map_interval
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.run import reader
from warmstart.tasks.classification import Classification
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
    found = ws.evaluate(str(small_run), split="val,test", output_dir=str(tmp_path / "out"), pictures=True)
    assert found.num_samples == 12
    with (tmp_path / "out" / "confusion.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == ["cat", "dog", "owl"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 12 and counts.trace() / 12 == found.metrics["accuracy"]
    kept = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert kept.ids == found.ids and kept.classes == ("cat", "dog", "owl")
    assert np.allclose(kept.scores.sum(axis=1), 1, atol=1e-5)
    record = json.loads((tmp_path / "out" / "evaluation_results.json").read_text())
    assert record["metrics"] == found.metrics
    assert (tmp_path / "out" / "evaluation_report.txt").read_text() == found.text() + "\n"
    for name in ("confusion_matrix.png", "class_performance.png", "calibration.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_is_that_of_scikit_learn(small_run: Path, tmp_path: Path) -> None:
    """By class, macro and weighted, in the file and in the words; with an interval of each recall and of both F1s."""
    found = ws.evaluate(str(small_run), split="all", output_dir=str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "evaluation_results.json").read_text())
    answers = found.outputs.argmax(axis=1)
    report = classification_report(
        found.targets, answers, target_names=list(found.classes), output_dict=True, zero_division=0
    )
    assert record["metrics"]["accuracy"] == report["accuracy"]
    rows = {row["name"]: row for row in record["per_class"]}
    rows |= {f"{kind} avg": row for kind, row in record["averages"].items()}
    for name in (*found.classes, "macro avg", "weighted avg"):
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("support",) * 2):
            assert (rows[name][ours] or 0) == pytest.approx(report[name][theirs], abs=1e-12), (name, ours)
    for name in found.classes:
        low, high = record["intervals"]["recall"][name]
        assert low <= rows[name]["recall"] <= high and low < high
    for kind in ("macro", "weighted"):
        low, high = record["intervals"][f"f1_{kind}"]
        assert low <= report[f"{kind} avg"]["f1-score"] <= high
        assert f"{kind} average" in found.text() and f"{kind} f1 {low:.4f} to {high:.4f}" in found.text()
    assert "top5" not in record["intervals"], "of three classes"


def test_top5_has_an_interval_among_more_than_five_classes() -> None:
    task, rng = Classification(tuple("abcdefgh")), np.random.default_rng(0)
    outputs, targets = rng.normal(size=(90, 8)).astype(np.float32), rng.integers(0, 8, 90)
    low, high = evaluation_report.results(task, outputs, targets)["intervals"]["top5"]
    assert low < task.evaluate(outputs, targets)["top5"] < high
    outputs[3] = np.nan
    assert evaluation_report.results(task, outputs, targets) == {"averages": {}, "intervals": {}}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_documents_command_line(
    small_run: Path, tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"evaluate --checkpoint {small_run}/checkpoint-epoch-2 --data_dir {small_run.parent / 'data'}"
    words += f" --split {split} --output_dir {tmp_path / 'out'} --batch_size 32 --pictures"
    assert main(words.split()) == 0
    told = capsys.readouterr().out
    assert f"{small_run}@{reader.open_run(small_run).pointer('LAST')} on {split} of" in told
    wanted = {
        "evaluation_report.txt",
        "evaluation_results.json",
        "confusion_matrix.png",
        "class_performance.png",
    }
    assert wanted <= {path.name for path in (tmp_path / "out").iterdir()}


def test_class_names_are_those_of_the_run_without_its_data(small_run: Path, tmp_path: Path) -> None:
    """Where the document's predictor finds no names it falls back to class_0, class_1, ..."""
    copy = Path(shutil.copytree(small_run, tmp_path / "elsewhere" / "run"))
    shutil.rmtree(copy / "evaluations")
    image = shutil.copy(small_run.parent / "data" / "owl" / "0.png", tmp_path / "x.png")
    result = ws.predict(f"{copy}/checkpoint-epoch-2", [str(image)])
    assert set(result.predictions[0].classes) == {"cat", "dog", "owl"}


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
