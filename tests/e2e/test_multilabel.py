"""Multi-label end to end: real digits, none to two in one image, labels such as `one|three`."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score

import warmstart as ws
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import layout, reader

DIGITS = {"four": 4, "one": 1, "three": 3, "zero": 0}  # label -> digit
COLUMNS = ",".join(DIGITS)
SETTINGS = {
    "model": "builtin:fashion_cnn", "weights": "none", "image_size": "16x32", "augment": "none", "device": "cpu",
    "workers": 0,
    "tensorboard": False, "pictures": False, "batch_size": 16, "lr": 3e-3, "val_ratio": 0.2, "train_ratio": 0.6,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 images of two places, each blank or a digit; labels as sets in `sets.csv`, as columns in `columns.csv`."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images = [found.images[found.target == digit] for digit in DIGITS.values()]
    names = list(DIGITS)
    rng = np.random.default_rng(0)
    sets = [["file", "label"]]
    columns = [["file", *DIGITS]]
    for number in range(320):
        halves, labels = [], set()
        for kind in rng.integers(-1, 4, 2).tolist():
            halves.append(
                np.zeros((8, 8)) if kind < 0 else images[kind][rng.integers(len(images[kind]))] * 15.9
            )
            labels |= {names[kind]} if kind >= 0 else set()
        pixels = np.kron(np.concatenate(halves, axis=1).astype(np.uint8), np.ones((2, 2), np.uint8))
        Image.fromarray(pixels).save(root / f"{number}.png")
        sets.append([f"{number}.png", "|".join(sorted(labels))])
        columns.append([f"{number}.png", *(int(name in labels) for name in DIGITS)])
    for name, rows in (("sets", sets), ("columns", columns)):
        with (root / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return root


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def finetune(digits: Path, folder: Path, **changes: Any) -> Any:
    values = {**SETTINGS, "data": str(digits / "sets.csv"), "output_dir": str(folder), "epochs": 3, **changes}
    return ws.finetune(**values)


@pytest.fixture(scope="module")
def result(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finetune(digits, tmp_path_factory.mktemp("run") / "run", epochs=4, pictures=True)


def test_a_run_learns_and_says_so(result: Any) -> None:
    run = reader.open_run(result.run)
    assert run.resolved["task"] == "multi-label" and run.resolved["select_by"] == "map"
    assert run.resolved["data"]["sizes"]["test"] == result.num_samples
    assert any("multi-label with 4 classes" in note for note in run.resolved["data"]["notes"])
    start, best = result.gains[1].start, result.gains[1].best
    assert result.split == "test" and best["map"] > 0.8 > start["map"] + 0.2
    assert result.gains[1].metric == "map" and "better than the start: mAP +" in result.gains[1].text()
    assert "images with fewer wrong labels" in result.text()
    assert {"top5", "ece", "accuracy"}.isdisjoint(best)


def test_the_best_is_the_best_by_map(result: Any) -> None:
    run = reader.open_run(result.run)
    rows = [row for row in run.evals.rows if row["split"] == "val" and row.get("kind") != "evaluate"]
    best = max(rows[1:], key=lambda row: row["map"])
    assert run.pointer(layout.BEST) == best["step"] and run.status["best_value"] == best["map"]


def test_thresholds_are_those_of_val_and_test_is_measured_at_them(result: Any) -> None:
    run = reader.open_run(result.run)
    best = run.pointer(layout.BEST)
    assert run.thresholds is not None
    assert (run.thresholds["step"], run.thresholds["split"]) == (best, "val")
    thresholds = np.array([run.thresholds["thresholds"][name] for name in DIGITS])
    for split in ("val", "test"):
        kept = read_predictions(run.path / layout.EVALUATIONS / f"{split}@{best}" / "predictions.parquet")
        metrics = json.loads(
            (run.path / layout.EVALUATIONS / f"{split}@{best}" / "evaluation_results.json").read_text()
        )
        at_best = f1_score(kept.targets, kept.scores >= thresholds, average="macro")
        assert metrics["metrics"]["f1"] == pytest.approx(at_best)
        expected = average_precision_score(kept.targets, kept.scores, average="macro")
        assert metrics["metrics"]["map"] == pytest.approx(expected, abs=1e-9)
        if split == "val":
            assert at_best >= f1_score(kept.targets, kept.scores >= 0.5, average="macro")
    again = ws.evaluate(result.run)
    assert (
        again.metrics == result.metrics and "chosen on the run's val split (thresholds.json)" in again.text()
    )
    other = next(step for step in run.checkpoint_steps() if step != best)
    assert "thresholds: 0.5 for every label" in ws.evaluate(f"{result.run}@{other}").text()


def test_adapters_and_files_bring_their_thresholds_along(result: Any, digits: Path, tmp_path: Path) -> None:
    """An adapter folder, what merge writes of it or of the run, and the file of --save-as answer as the run does."""
    saved, given = tmp_path / "saved.safetensors", {"model": None, "weights": result.run, "lora.rank": 2}
    tuned = finetune(digits, tmp_path / "tuned", epochs=2, save_as=str(saved), **given)
    told = reader.open_run(tuned.run).thresholds
    assert told is not None and any(value != 0.5 for value in told["thresholds"].values())
    adapter = shutil.move(Path(tuned.run) / layout.ADAPTER, tmp_path / "adapter")
    images = [str(digits / f"{number}.png") for number in range(40)]
    wanted = [[name for name, _ in found.labels or ()] for found in ws.predict(tuned.run, images).predictions]
    for name, model in (
        ("adapter", str(adapter)),
        ("saved", str(saved)),
        ("of the run", ws.merge(tuned.run, to=str(tmp_path / "run.safetensors")).file),
        ("of the adapter", ws.merge(str(adapter), to=str(tmp_path / "adapter.safetensors")).file),
    ):
        found = ws.predict(model, images)
        assert [[label for label, _ in each.labels or ()] for each in found.predictions] == wanted, name
        assert "0.5 for every label" not in found.text(), name
    report = ws.evaluate(str(saved), str(digits / "sets.csv")).text()
    assert "thresholds: chosen on the run's val split (as the file says)" in report
    step = next(step for step in reader.open_run(tuned.run).checkpoint_steps() if step != told["step"])
    other = ws.merge(f"{tuned.run}@{step}", to=str(tmp_path / "other.safetensors"))
    assert f"the thresholds that val chose are those of step {told['step']}" in other.text()
    assert "0.5 for every label" in ws.predict(other.file, images).text()
    plain = finetune(digits, tmp_path / "plain", epochs=1, save_as=str(tmp_path / "plain.pt"))
    log = (Path(plain.run) / layout.LOG).read_text()
    assert f"its tensors do not say from which scores on each label is given: {plain.run} does" in log


def test_tables_and_pictures(result: Any) -> None:
    run = reader.open_run(result.run)
    folder = run.path / layout.EVALUATIONS / f"test@{run.pointer(layout.BEST)}"
    assert {path.name for path in folder.iterdir()} == {
        "evaluation_results.json", "evaluation_report.txt", "labels.csv", "labels.png", "predictions.parquet",
    }  # fmt: skip
    rows = read_rows(folder / "labels.csv")
    assert [row["label"] for row in rows] == list(DIGITS)
    assert np.mean([float(row["ap"]) for row in rows]) == pytest.approx(result.metrics["map"])
    assert (run.path / layout.CURVES).stat().st_size > 10_000


def test_predict_says_the_labels_above_their_thresholds(result: Any, digits: Path, tmp_path: Path) -> None:
    images = [str(digits / f"{number}.png") for number in range(40)]
    found = ws.predict(result.run, images, top_k=2, output=str(tmp_path / "p.csv"))
    told = reader.open_run(result.run).thresholds
    assert told is not None
    for prediction in found.predictions:
        reached = {
            n
            for n, s in zip(prediction.classes, prediction.scores, strict=True)
            if s >= told["thresholds"][n]
        }
        assert reached <= {name for name, _ in prediction.labels or ()}
    rows = read_rows(tmp_path / "p.csv")
    wanted = read_rows(digits / "sets.csv")[:40]
    right = [
        set(a["labels"].split("|")) == set(b["label"].split("|")) for a, b in zip(rows, wanted, strict=True)
    ]
    assert np.mean(right) > 0.5
    first = found.to_json()["predictions"][0]
    assert "class" not in first and [row["class"] for row in first["labels"]] == [
        name for name, _ in found.predictions[0].labels or ()
    ]
    assert "none" in found.text() and len(first["top"]) == 2


def test_the_file_alone_knows_that_it_is_multi_label(result: Any, digits: Path, tmp_path: Path) -> None:
    run = reader.open_run(result.run)
    file = tmp_path / "m.safetensors"
    shutil.copy(run.checkpoint(run.pointer(layout.BEST)) / layout.MODEL, file)
    image = [str(digits / "3.png")]
    bare, own = ws.predict(str(file), image), ws.predict(result.run, image)
    assert bare.predictions[0].scores == own.predictions[0].scores
    assert bare.predictions[0].labels is not None and "0.5 for every label" in bare.text()
    measured = ws.evaluate(str(file), str(digits / "sets.csv"), split="all")
    assert measured.num_samples == 320 and "none are recorded for these weights" in measured.text()
    again = ws.evaluate(str(file), str(digits / "columns.csv"), split="all", label_columns=COLUMNS)
    assert again.metrics == measured.metrics


def test_show_runs_and_check(result: Any, digits: Path) -> None:
    from warmstart.analysis.summary import runs_text, show_text

    info = ws.show(result.run)
    text = show_text(info)
    assert "exact_match" in text and "threshold 0.5" in text and "test: better than the start: mAP" in text
    assert f"test {result.num_samples}" in text
    rows = ws.runs(str(Path(result.run).parent))
    assert rows[0]["map"] > 0.8 and rows[0]["accuracy"] is None and " map " in runs_text(rows)
    checked = ws.check(result.run, str(digits / "sets.csv"))
    assert checked.metrics is not None and checked.metrics["map"] > 0.8 and "mAP" in checked.text()


def test_columns_of_0_and_1_are_the_same_data(digits: Path, tmp_path: Path) -> None:
    settings = {"data": str(digits / "columns.csv"), "label_columns": COLUMNS, "max_steps": 4}
    first = finetune(digits, tmp_path / "columns", **settings)
    second = finetune(digits, tmp_path / "sets", max_steps=4)
    assert first.metrics == second.metrics
    assert ws.evaluate(first.run).metrics == first.metrics
    assert ws.check(first.run, settings["data"]).num_samples == 96
    written = ws.init(
        settings["data"], output=str(tmp_path / "w.yaml"), label_columns=settings["label_columns"]
    )
    assert "label_columns: [four, one, three, zero]" in Path(written).read_text(encoding="utf-8")


def test_an_interrupted_run_ends_as_one_that_was_not(
    digits: Path, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    settings = {"epochs": 1, "max_steps": 6, "eval_every": "2steps", "class_weights": "balanced", "ema": 0.5}
    straight = finetune(digits, tmp_path / "straight", **settings)
    interrupt_at(3)
    with pytest.raises(UserError, match="interrupted at step 3 of 6"):
        finetune(digits, tmp_path / "cut", **settings)
    resumed = ws.resume(str(tmp_path / "cut"))
    assert resumed.metrics == straight.metrics and resumed.gains[1].to_json() == straight.gains[1].to_json()


# ---- what is refused


def test_a_metric_of_another_task_is_refused_before_training(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--select-by accuracy: a run of multi-label(.|\n)*map, f1, f1_micro"
    ):
        finetune(digits, tmp_path / "run", select_by="accuracy")
    assert not (tmp_path / "run").exists()
    by_loss = finetune(digits, tmp_path / "run", select_by="exact_match", max_steps=2)
    assert reader.open_run(by_loss.run).status["select_by"] == "exact_match"


def test_wrong_columns_and_weights_are_refused(digits: Path, tmp_path: Path) -> None:
    data = str(digits / "columns.csv")
    with pytest.raises(UserError, match=r"no column 'tree'(.|\n)*Did you mean 'three'"):
        finetune(digits, tmp_path / "run", data=data, label_columns="one,tree")
    with pytest.raises(UserError, match=r"no class is named 'too'"):
        finetune(digits, tmp_path / "run", class_weights="too=2")
    with pytest.raises(UserError, match="has no label column"):
        finetune(digits, tmp_path / "run", data=data)


def test_sets_are_no_classes(result: Any, digits: Path, tmp_path: Path) -> None:
    """One label per image is a set of one to a model of sets; a model of classes refuses sets."""
    rows = [row for row in read_rows(digits / "sets.csv") if "|" not in row["label"] and row["label"]]
    lines = ["file,label", *(f"{row['file']},{row['label']}" for row in rows)]
    (digits / "single.csv").write_text("\n".join(lines), encoding="utf-8")
    single = ws.evaluate(result.run, str(digits / "single.csv"), split="all")
    assert single.metrics["map"] > 0.8 and single.num_samples == len(rows)
    one = finetune(digits, tmp_path / "one", data=str(digits / "single.csv"), max_steps=2)
    with pytest.raises(UserError, match=r"labels of .* are sets, and the model gives one class per image"):
        ws.evaluate(one.run, str(digits / "sets.csv"))
    onwards = finetune(digits, tmp_path / "two", model=one.run, weights=None, max_steps=2)
    assert reader.open_run(onwards.run).resolved["task"] == "multi-label"
