"""Margin heads, thresholds and mined images on whole runs: what is trained is saved, what is chosen is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

import fresh
import warmstart as ws
from warmstart.config import io
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions, write_predictions
from warmstart.run import layout, writer
from warmstart.run.reader import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 grey pictures of two classes that overlap; a quarter is `open`."""
    root = tmp_path_factory.mktemp("eyes")
    rng = np.random.default_rng(0)
    for name, brightness, number in (("closed", 100, 90), ("open", 125, 30)):
        (root / name).mkdir()
        for index in range(number):
            pixels = (rng.normal(brightness, 25) + rng.normal(0, 30, (16, 16))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:03}.png")
    return root


@pytest.fixture
def start(eyes: Path, tmp_path: Path) -> Callable[..., Run]:
    def begin(name: str, **given: Any) -> Run:
        values = {
            "data": str(eyes),
            "model": "builtin:fashion_cnn",
            "weights": "none",
            "image_size": 16,
            "batch_size": 16,
            "train_ratio": 0.5,
            "val_ratio": 0.3,
            "epochs": 2,
            "lr": 3e-3,
            "workers": 0,
            "device": "cpu",
            "tensorboard": False,
            "pictures": False,
            "log_every": "1steps",
            "output_dir": str(tmp_path / name),
        }
        return Run(train.finetune(io.load({**values, **given})))

    return begin


Start = Callable[..., Run]

OUTPUTS = """
import sys, torch
torch.set_num_threads(1)
from warmstart.analysis.evaluate import evaluate
from warmstart.inference.restore import restore
found = evaluate(restore(sys.argv[1], torch.device("cpu")), split="val")
print(type(found.task).__name__, found.outputs.tobytes().hex())
"""


def val_rows(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.evals.rows if row.get("split") == "val" and "kind" not in row]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def weights_of(run: Run) -> bytes:
    step = run.pointer(layout.LAST)
    assert step is not None
    return (run.checkpoint(step) / layout.MODEL).read_bytes()


def test_a_fresh_process_gives_the_logits_of_the_head_that_was_trained(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Document 001's code trained `margin_head` and could save a file without it."""
    from warmstart.engine import measure

    seen: dict[int, bytes] = {}
    real = measure._look

    def keep(job: Any, weights: Any, feed: Any, samples: Any, split: str) -> Any:
        found = real(job, weights, feed, samples, split)
        if split == "val":
            seen[len(seen)] = found[0].tobytes()
        return found

    monkeypatch.setattr(measure, "_look", keep)
    run = start("run", margin_method="cosface", margin=0.3, ema=0.5, select_by="loss")
    assert run.plan["rows"][-1]["name"] == "margin_head"
    assert run.resolved["model"]["margin"]["margin"] == 0.3
    done = fresh.run(f"{run.path}@{run.pointer(layout.LAST)}", code=OUTPUTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Classification", seen[len(seen) - 1].hex()]


def test_a_growing_margin_survives_an_interruption_to_the_bit(
    start: Start, interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    settings = {"margin_method": "arcface", "margin_ramp": "5steps", "mixup": 0.4, "threshold": "f1"}
    whole = start("whole", **settings)
    fixed = start("fixed", **{**settings, "margin_ramp": None})
    assert weights_of(whole) != weights_of(fixed), "a ramp is not dead"
    interrupt_at(3)
    with pytest.raises(UserError, match="interrupted at step 3"):
        start("cut", **settings)
    again = Run(train.resume(str(tmp_path / "cut"), {}))
    assert weights_of(again) == weights_of(whole)
    for rows in ("metrics", "evals"):
        of_both = (without_times(getattr(run, rows).rows) for run in (again, whole))
        first, second = ([row for row in found if row.get("kind") != "resume"] for found in of_both)
        assert first == second


def test_the_margin_is_in_the_training_loss_alone(start: Start) -> None:
    plain, hard = start("plain", margin_method="cosface", margin=0.0), start("hard", margin_method="cosface")
    first = [next(row["loss"] for row in run.metrics.rows if row["kind"] == "train") for run in (plain, hard)]
    assert first[1] > first[0] + 0.5
    rows = [val_rows(run)[0] for run in (plain, hard)]
    assert rows[0] == rows[1], "before the first step they are one model"


def test_continuing_with_another_head_needs_new_weights_for_it(
    start: Start, eyes: Path, tmp_path: Path
) -> None:
    run = start("run", margin_method="cosface", epochs=1)
    with pytest.raises(
        UserError, match=r"the classifier of .* cannot be kept: the weights have a cosface head"
    ):
        ws.continue_run(str(run.path), margin_method="arcface", epochs=2, output_dir=str(tmp_path / "no"))
    child = ws.continue_run(
        str(run.path), keep="weights", margin_method="arcface", epochs=1, output_dir=str(tmp_path / "child")
    )
    assert Run(Path(child.run)).resolved["model"]["head"]["kind"] == "new"
    same = start("same", weights=str(run.path), model=None, epochs=1)
    assert same.resolved["model"]["head"]["kind"] == "kept" and same.resolved["model"]["margin"] is not None


def test_the_threshold_is_chosen_on_val_stored_and_used(start: Start, eyes: Path, tmp_path: Path) -> None:
    """Document 001's code changed a global threshold in the middle of a run, and stored it nowhere."""
    alone = tmp_path / "alone.safetensors"
    run = start("run", threshold="f1", select_by="f1_positive", epochs=4, save_as=str(alone))
    best = run.pointer(layout.BEST)
    row = next(row for row in val_rows(run) if row["step"] == best)
    assert row["f1_positive"] == max(r["f1_positive"] for r in val_rows(run)), (
        "selected at .5, not at a threshold"
    )
    val = ws.evaluate(str(run.path), split="val", output_dir=str(tmp_path / "val"))
    targets = val.targets
    scores = val.task.scores(val.outputs)[:, 1]
    best_f1 = max(f1_score(targets, scores >= t) for t in np.unique(scores))
    assert val.metrics["threshold"] == row["threshold"]
    assert row["f1_positive_at_threshold"] == pytest.approx(best_f1)
    assert val.metrics["f1_positive_at_threshold"] == pytest.approx(best_f1)
    assert (
        "from " in val.text() and "at .5" in val.text() and "f1, chosen on the run's val split" in val.text()
    )
    test = ws.evaluate(str(run.path), split="test", output_dir=str(tmp_path / "test"))
    assert test.metrics["threshold"] == row["threshold"], "never chosen on test"
    images = sorted(str(path) for path in eyes.rglob("*.png"))
    told = ws.predict(str(run.path), images)
    by_id = {p.id: p for p in told.predictions}
    for name in images:
        p = by_id[name]
        score = dict(zip(p.classes, p.scores, strict=True))["open"]
        assert (p.classes[0] == "open") == (score >= row["threshold"])
    assert f"from a score of {row['threshold']:.4f} on (f1, chosen on" in told.notes[0]
    told_alone = ws.evaluate(str(alone), str(eyes), output_dir=str(tmp_path / "alone"))
    assert told_alone.metrics["threshold"] == row["threshold"], "the file alone knows it"


def test_a_number_is_taken_as_it_is_and_the_positive_class_by_name(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "warmstart"):
        run = start("run", threshold=0.3, positive="closed", epochs=1, save_as=str(tmp_path / "bare.pt"))
    assert "do not say that it answers closed from a score of 0.3000 on (given)" in caplog.text
    found = ws.evaluate(str(run.path), split="val")
    assert found.metrics["threshold"] == 0.3
    closed = found.task.scores(found.outputs)[:, 0]
    said = closed >= 0.3
    assert found.metrics["recall_positive_at_threshold"] == pytest.approx(said[found.targets == 0].mean())
    assert "closed is positive, from 0.3000 on (given)" in found.text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": "f1", "val_ratio": 0.0, "train_ratio": 0.8}, "--threshold f1 needs validation images"),
        ({"positive": "opne"}, "no class is named 'opne'"),
    ],
)
def test_thresholds_that_cannot_be(start: Start, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        start("run", **given)


def test_more_classes_and_sets_have_neither(overlapping: Path, start: Start, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--threshold f1 is for two classes, and these data are of 3 classes"):
        start("three", data=str(overlapping), threshold="f1")
    table = tmp_path / "sets.csv"
    names = [str(path) for path in sorted(overlapping.rglob("*.png"))]
    lines = [f"{name},{index % 2},{index % 3 // 2}" for index, name in enumerate(names)]
    table.write_text("\n".join(["path,a,b", *lines]) + "\n")
    for given, words in (
        (
            {"margin_method": "cosface"},
            "a margin head .cosface. needs one class per image, and these data are multi",
        ),
        ({"positive": "a"}, "--positive a is for two classes, and these data are multi-label"),
    ):
        with pytest.raises(UserError, match=words):
            start("sets", data=str(table), label_columns="a,b", **given)


def test_weights_by_side(start: Start) -> None:
    named, by_side = (
        start("named", class_weights="open=3", epochs=1),
        start("side", class_weights="positive=3", epochs=1),
    )
    assert weights_of(named) == weights_of(by_side)
    other = start("other", class_weights="positive=3", positive="closed", epochs=1)
    assert weights_of(other) != weights_of(named)


def test_a_parents_best_that_is_taken_along_answers_by_the_childs_threshold(
    start: Start, tmp_path: Path
) -> None:
    """The start calls every image open: nothing beats its recall, so the child's best is the parent's older one."""
    parent = start("parent", threshold="f1", select_by="recall_positive")
    best, last = parent.pointer(layout.BEST), parent.pointer(layout.LAST)
    assert best is not None and last is not None and best < last
    kept = (parent.checkpoint(best) / layout.MODEL).read_bytes()
    found = {}
    for name, rule in (("same", "f1"), ("dear", "cost=1:30"), ("fixed", "0.125"), ("none", "none")):
        child = ws.continue_run(
            str(parent.path), threshold=rule, lr=1e-9, epochs=3, output_dir=str(tmp_path / name)
        )
        run = Run(Path(child.run))
        assert run.pointer(layout.BEST) == best
        found[name] = ws.evaluate(f"{run.path}@best", split="val").metrics
        assert ((run.checkpoint(best) / layout.MODEL).read_bytes() == kept) == (name == "same")
        row = next(row for row in run.evals.rows if row.get("kind") == "parent" and row["split"] == "val")
        assert row.get("threshold") == found[name].get("threshold")
        told = "its best, taken along, answers with" in (run.path / layout.LOG).read_text()
        assert told == (name != "same")
    assert found["fixed"]["threshold"] == 0.125 and "threshold" not in found["none"]
    assert found["dear"]["threshold"] > found["same"]["threshold"]
    assert found["dear"]["recall_positive_at_threshold"] < found["same"]["recall_positive_at_threshold"]
    assert {each["loss"] for each in found.values()} == {found["same"]["loss"]}


def test_mined_images_come_more_often_and_a_resume_needs_no_file(
    start: Start, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    first = start("first", epochs=1)
    with pytest.raises(UserError, match="has no predictions of its training images"):
        start("early", mine=str(first.path))
    ws.evaluate(str(first.path), split="train")
    mined = start("mined", mine=str(first.path), mine_prob=0.5, mine_weight=3.0)
    record = mined.resolved["mined"]
    found = read_predictions(Path(record["path"]))
    assert found.targets is not None
    wrong = {
        name
        for name, target, s in zip(found.ids, found.targets, found.scores, strict=True)
        if s[1 - target] >= 0.5
    }
    assert set(record["ids"]) == wrong and 0 < len(wrong) < record["num_known"] == len(found.ids)
    plain = start("plain")
    assert weights_of(plain) != weights_of(mined)
    interrupt_at(2)
    with pytest.raises(UserError, match="interrupted at step 2"):
        start("cut", mine=str(first.path), mine_prob=0.5, mine_weight=3.0)
    Path(record["path"]).unlink()
    assert weights_of(Run(train.resume(str(tmp_path / "cut"), {}))) == weights_of(mined)


def test_predictions_of_other_images_or_classes_are_refused(
    start: Start, overlapping: Path, tmp_path: Path
) -> None:
    other = start("other", data=str(overlapping), epochs=1)
    told = ws.evaluate(str(other.path), split="train")
    assert told.folder is not None
    with pytest.raises(UserError, match=r"is of the classes ant, bee, cat, and these data have closed, open"):
        start("no", mine=str(Path(told.folder) / "predictions.parquet"))
    run = start("run", epochs=1)
    ws.evaluate(str(run.path), split="test", output_dir=str(tmp_path / "test"))
    with pytest.raises(UserError, match="knows none of the 60 training images by their ids"):
        start("none", mine=str(tmp_path / "test" / "predictions.parquet"))


def test_other_images_of_the_same_names_are_not_mined(
    start: Start, eyes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Path(shutil.copytree(eyes, tmp_path / "here"))
    run = start("run", data=str(here), epochs=1)
    ws.evaluate(str(run.path), split="train")
    there = Path(shutil.copytree(eyes, tmp_path / "there"))
    assert start("copy", data=str(there), mine=str(run.path)).resolved["mined"]["num_known"] == 60
    for folder in (here, there):
        Image.new("L", (16, 16)).save(folder / "open" / "new.png")
    with pytest.raises(UserError, match=rf"was trained on {here}, and --data {there} holds other images"):
        start("no", data=str(there), mine=str(run.path))
    assert start("grown", data=str(here), mine=str(run.path)).resolved["mined"]["num_known"] > 0
    assert f"the data in {here} have changed since" in caplog.text


def test_a_file_with_other_labels_is_refused(start: Start, tmp_path: Path) -> None:
    run = start("run", epochs=1)
    ws.evaluate(str(run.path), split="train", output_dir=str(tmp_path / "train"))
    file = tmp_path / "train" / "predictions.parquet"
    kept = read_predictions(file)
    assert kept.targets is not None
    for num, is_refused in ((6, False), (7, True)):
        targets = np.where(np.arange(60) < num, 1 - kept.targets, kept.targets)
        file.write_bytes(write_predictions(kept.ids, targets, kept.scores, kept.classes))
        if is_refused:
            with pytest.raises(UserError, match="has other labels for 7 of the 60 training images"):
                start(f"of{num}", mine=str(file))
        else:
            assert start(f"of{num}", mine=str(file)).resolved["mined"]["num_known"] == 60


def test_a_best_step_0_is_mined_before_newer_ones(start: Start) -> None:
    run = start("run", epochs=1)
    writer.mark_best(run.path, 0)
    for step in (0, run.pointer(layout.LAST)):
        ws.evaluate(f"{run.path}@{step}", split="train")
    assert "train@0" in start("mined", mine=str(run.path)).resolved["mined"]["path"]


def test_the_distance_between_classes_is_in_every_row_and_grows(start: Start, tmp_path: Path) -> None:
    run = start("run", epochs=4, freeze="conv*", feature_cache="on", views=1)
    rows = [row for row in run.evals.rows if "kind" not in row]
    assert all({"fisher_ratio", "fisher_document", "separation"} <= set(row) for row in rows)
    val = val_rows(run)
    assert val[-1]["fisher_ratio"] > val[0]["fisher_ratio"] > 0
    assert set(val[0]["separation"]) == {"closed", "open"}
    told = ws.evaluate(f"{run.path}@{val[-1]['step']}", split="val", output_dir=str(tmp_path / "val"))
    scores = told.task.scores(told.outputs)
    wrong = scores.argmax(axis=1) != told.targets
    assert val[-1]["most_confident_mistake"] == pytest.approx(scores[wrong].max(initial=0), abs=1e-6)
    suspects = (tmp_path / "val" / "mislabelled.csv").read_text().splitlines()[1:]
    assert val[-1]["likely_mislabelled"] == len(suspects)
    assert json.dumps(val)


def test_a_blend_of_weights_has_a_threshold_of_its_own(start: Start, tmp_path: Path) -> None:
    one = start("one", epochs=1, margin_method="cosface", threshold="f1", select_by="loss")
    two = start(
        "two",
        epochs=1,
        model=None,
        weights=str(one.path),
        threshold="f1",
        positive="closed",
        select_by="loss",
    )
    mixed = ws.blend([str(one.path), str(two.path)], alphas="0.5", output_dir=str(tmp_path / "mixed"))
    found = ws.evaluate(mixed.run, split="val")
    assert found.task.decision is not None and found.task.decision.positive == "closed"
    assert found.metrics["threshold"] == found.task.decision.threshold
    assert found.task.decision == mixed.blended.decision, "by its run's rule, on val"
    assert "threshold" in ws.evaluate(f"{two.path}@{two.pointer(layout.LAST)}", split="val").metrics
