"""The same samples, in one order, with one numbering of the classes; or a refusal that says why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from warmstart.analysis.compare.answers import align, kept_answers
from warmstart.analysis.compare.measures import answers_of
from warmstart.analysis.compare.sides import Side, common_split, open_side
from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.reader import Run

TARGETS = np.arange(12) % 3
RIGHT = np.arange(12) < 9


def test_answers_are_those_that_the_run_has_kept(write_run):
    run = write_run("a", RIGHT, TARGETS)
    side = open_side(str(run))
    found = kept_answers(side, "test")
    assert found is not None and (side.step, found.kind) == (8, "classification")
    assert ((answers_of(found) == TARGETS) == RIGHT).all()
    assert kept_answers(side, "val") is None and kept_answers(open_side(f"{run}@0"), "test") is None
    folder = run / layout.EVALUATIONS / "val@8"
    folder.mkdir(parents=True)
    (run / layout.PREDICTIONS / "test@8.parquet").replace(folder / "predictions.parquet")
    assert kept_answers(side, "val") is not None and kept_answers(side, "test") is None


def test_a_threshold_that_was_measured_with_decides(write_run):
    """Two classes, positive from .9 on: a score of .8 is not enough."""
    data = {"path": "x", "classes": ["closed", "open"], "sizes": {"test": 4}, "fingerprint": "f"}
    run = write_run("a", np.full(4, True), np.array([0, 1, 0, 1]), data=data)
    writer.append_row(run / layout.EVALS, {"step": 8, "split": "test", "threshold": 0.9})
    from warmstart.inference.predictions import write_predictions

    scores = np.array([[0.95, 0.05], [0.2, 0.8], [0.6, 0.4], [0.05, 0.95]], np.float32)
    content = write_predictions(list("abcd"), np.array([0, 1, 0, 1]), scores, ("closed", "open"))
    (run / layout.PREDICTIONS / "test@8.parquet").write_bytes(content)
    found = kept_answers(open_side(str(run)), "test")
    assert found is not None and answers_of(found).tolist() == [0, 0, 0, 1]


def test_other_orders_of_samples_and_classes_make_no_difference(made):
    one = made(RIGHT, TARGETS)
    order, swap = np.random.default_rng(0).permutation(12), [2, 0, 1]
    other = replace(
        one.at(order),
        classes=tuple(one.classes[place] for place in swap),
        scores=one.scores[order][:, swap],
        targets=np.argsort(swap)[TARGETS[order]],
    )
    (first, second), left_out = align([one, other])
    assert left_out == 0 and first.ids == second.ids and first.classes == second.classes
    assert (first.targets == second.targets).all() and (first.scores == second.scores).all()


def test_what_only_one_was_measured_on_is_left_out_and_counted(made):
    one = made(RIGHT, TARGETS)
    (first, second), left_out = align([one, one.at(np.arange(3, 12))])
    assert left_out == 3 and first.ids == second.ids == one.ids[3:]
    with pytest.raises(UserError, match="only 5 of up to 12 samples are the same"):
        align([one, one.at(np.arange(5))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "multi-label"}, "is classification, .* is multi-label"),
        ({"classes": ("ant", "bee", "dog")}, "different classes: cat, dog"),
        ({"targets": (TARGETS + 1) % 3}, "12 of 12 samples have another label"),
        ({"scores": np.full((12, 3), np.nan, np.float32)}, "are not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(made, change, message):
    one = made(RIGHT, TARGETS)
    with pytest.raises(UserError, match=message):
        align([one, replace(one, **change)])


def test_the_split_is_test_where_all_have_one_else_val(write_run):
    with_test = open_side(str(write_run("a", RIGHT, TARGETS)))
    data = {"path": "x", "classes": ["ant"], "sizes": {"train": 1, "val": 1}, "fingerprint": "f"}
    without = open_side(str(write_run("b", RIGHT, TARGETS, data=data)))
    assert common_split([with_test], None) == "test" and common_split([with_test, without], None) == "val"
    assert common_split([Side("weights.pt")], None) is None
    with pytest.raises(UserError, match=r"--split test: .*b@8 has none"):
        common_split([with_test, without], "test")


def test_runs_that_cannot_be_opened_say_why(write_run, tmp_path):
    run = write_run("a", RIGHT, TARGETS)
    assert open_side(f"{run}@0").label == f"{run}@0"
    with pytest.raises(UserError, match="leave --task out"):
        open_side(str(run), "shapes")
    with pytest.raises(UserError, match="does not exist"):
        open_side(str(tmp_path / "nothing"))
    (run / layout.CHECKPOINTS / layout.BEST).unlink()
    (run / layout.CHECKPOINTS / layout.LAST).unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        open_side(str(run))
    episodes = write_run("e", RIGHT, TARGETS, episodes={"way": 5})
    with pytest.raises(UserError, match="learned from episodes"):
        open_side(str(episodes))


def test_a_run_in_progress_and_damaged_rows_are_told(write_run):
    run = write_run("a", RIGHT, TARGETS)
    writer.write_status(run, "interrupted", step=8)
    with (run / layout.EVALS).open("a", encoding="utf-8") as file:
        file.write("{torn\n")
    notes = Side(str(run), Run(run), 8).notes
    assert any("interrupted" in note for note in notes) and any("1 damaged rows" in note for note in notes)
