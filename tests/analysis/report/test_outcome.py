"""The sentence that a page opens with, for each way that a run can end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmstart.analysis.diagnose.findings import Diagnosis, Finding
from warmstart.analysis.report import facts
from warmstart.analysis.report.answers import kept_evaluation
from warmstart.analysis.report.glance import tiles_of
from warmstart.analysis.report.outcome import _diagnosis, verdict_of
from warmstart.analysis.report.words import Words
from warmstart.run import layout, writer
from warmstart.run.reader import Run

ENGLISH = Words("en")


def gain(split: str = "test", **changes: Any) -> dict[str, Any]:
    """What a run records: clearly better, unless it says otherwise."""
    values = {
        **{
            "metric": "accuracy",
            "difference": 0.2,
            "low": 0.1,
            "high": 0.3,
            "fixed": 30,
            "broken": 10,
            "p": 0.002,
        },
        **{"split": split, "num_samples": 100, "best_step": 8, "start_step": 0, "task": None},
        **{"start": {"accuracy": 0.5, "loss": 1.0}, "best": {"accuracy": 0.7, "loss": 0.6}},
    }
    return values | changes


WORSE = {"difference": -0.2, "low": -0.3, "high": -0.1, "fixed": 10, "broken": 30}
UNSURE = {"difference": 0.02, "low": -0.06, "high": 0.1, "fixed": 12, "broken": 10, "p": 0.8}


@pytest.fixture
def ended(small_run: Path, tmp_path: Path) -> Callable[..., Run]:
    """The small run as if it had ended with these gains, and with `changes` of resolved.json."""

    def end(gains: list[dict[str, Any]], state: str = "finished", **changes: Any) -> Run:
        folder = Path(shutil.copytree(small_run, tmp_path / "run"))
        writer.write_json(folder / layout.GAINS, gains)
        writer.write_json(
            folder / layout.RESOLVED, json.loads((folder / layout.RESOLVED).read_text()) | changes
        )
        writer.write_status(folder, state, step=8)
        return Run(folder)

    return end


@pytest.mark.parametrize(
    ("gains", "tone", "sentence", "line"),
    [
        (
            [gain("val"), gain()],
            "good",
            "Better than its start: accuracy 0.500 → 0.700 on test.",
            "30 fixed, 10 broken",
        ),
        ([gain(**WORSE)], "bad", "Worse than its start", "−0.200 (95 % paired interval −0.300 to −0.100)"),
        ([gain(**UNSURE)], "unsure", "Cannot be told from its start with 100 images", "images would tell"),
        ([gain("val")], "good", "Better than its start", "chosen on these images"),
        ([gain(best_step=0)], "plain", "the start was kept", ""),
        ([gain(best_step=4, start_step=8)], "plain", "the parent's best was found", ""),
        ([gain(), gain("retain", **WORSE)], "good", "Better than its start", "Forgot 0.200 of accuracy"),
        ([gain(), gain("retain", **UNSURE)], "good", "Better than its start", "Nothing of the retained data"),
        ([gain(difference=None, low=None, high=None, p=1.0)], "unsure", "Cannot be told", "–"),
        ([gain(task="a"), gain(task="b", **UNSURE)], "unsure", "1 of 2 tasks better", "b: Cannot be told"),
        ([gain(task="a"), gain(task="b", **WORSE)], "bad", "1 of 2 tasks better", "b: Worse than its start"),
    ],
)
def test_every_end_has_its_sentence(
    ended: Callable[..., Run], gains: list[dict[str, Any]], tone: str, sentence: str, line: str
) -> None:
    found = verdict_of(ended(gains), None, ENGLISH)
    assert found.tone == tone and sentence in found.sentence and line in "\n".join(found.lines)
    assert found.forest is None or len(found.forest.spans) == sum(g["low"] is not None for g in gains)


def test_the_answers_at_the_threshold_count(ended: Callable[..., Run]) -> None:
    best = {"accuracy": 0.7, "accuracy_at_threshold": 0.75}
    assert "0.500 → 0.750" in verdict_of(ended([gain(best=best)]), None, ENGLISH).sentence


def test_a_child_says_what_became_of_its_bar(ended: Callable[..., Run]) -> None:
    bar = {"metric": "accuracy", "value": 0.25, "run": "runs/parent", "step": 4}
    parent = {"run": "runs/parent", "step": 4, "lr": 0.1, "keep": "all", "bar": bar}
    lines = verdict_of(ended([gain()], parent=parent), None, ENGLISH).lines
    assert any("Against its parent runs/parent: accuracy 0.250 →" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "word"), [("running", "So far"), ("interrupted", "Not finished"), ("failed", "Not finished")]
)
def test_before_the_end_it_is_so_far(ended: Callable[..., Run], state: str, word: str) -> None:
    found = verdict_of(ended([], state), None, ENGLISH)
    assert found.word == word and found.sentence.startswith("So far: best accuracy")
    assert f"The run is {state}: step" in found.lines[0] and found.tone == "plain"


def test_places_on_the_axis_are_in_order(ended: Callable[..., Run]) -> None:
    forest = verdict_of(ended([gain("val", **UNSURE), gain(**WORSE)]), None, ENGLISH).forest
    assert forest is not None
    for span in forest.spans:
        assert 0 <= span.low < span.value < span.high <= 100
    assert forest.spans[1].high < forest.zero < forest.spans[0].high


def words_of(diagnosis: Diagnosis) -> str:
    return " ".join(_diagnosis(diagnosis, ENGLISH))


def test_findings_that_are_not_named_are_counted() -> None:
    found = tuple(Finding(name, 0.9, name, (), "") for name in "abcd")
    assert words_of(Diagnosis("r", "p", "finished", found, 9)) == "Diagnosis: a; b; and 2 more."
    assert words_of(Diagnosis("r", "p", "finished", found[:2], 9)) == "Diagnosis: a; b."


@pytest.mark.parametrize(
    ("before", "kind", "is_said"), [(0.3, "new", True), (0.9, "new", False), (0.3, "kept", False)]
)
def test_a_new_head_that_starts_by_chance_is_said(
    small_run: Path, ended: Callable[..., Run], before: float, kind: str, is_said: bool
) -> None:
    model = json.loads((small_run / layout.RESOLVED).read_text())["model"]
    model["head"]["kind"] = kind
    start = {"accuracy": before, "loss": 1.0}
    lines = verdict_of(ended([gain(start=start)], model=model), None, ENGLISH).lines
    assert any("head was made anew" in line for line in lines) is is_said


def test_each_task_has_its_own_caveats(ended: Callable[..., Run]) -> None:
    tasks = [
        {"name": name, "kind": "labels", "classes": ["x", "y"], "head": {"kind": kind}}
        for name, kind in (("a", "kept"), ("b", "new"))
    ]
    found = verdict_of(ended([gain("val", task="a"), gain(task="b")], tasks=tasks), None, ENGLISH)
    first, second = found.lines
    assert first.startswith("a: ") and "chosen on these images" in first and "made anew" not in first
    assert second.startswith("b: ") and "chosen on these images" not in second and "made anew" in second


def test_tasks_that_all_kept_their_start_are_unchanged(ended: Callable[..., Run]) -> None:
    found = verdict_of(ended([gain(task=name, best_step=0) for name in "ab"], tasks=[]), None, ENGLISH)
    assert found.word == "Unchanged" and found.tone == "plain"


def test_the_interval_of_other_answers_is_left_out(ended: Callable[..., Run]) -> None:
    ends = {"accuracy_low": 0.6, "accuracy_high": 0.8}
    at_threshold = {"accuracy": 0.7, "accuracy_at_threshold": 0.95, **ends}
    run = ended([gain(best=at_threshold)])
    first = tiles_of(run, ENGLISH).tiles[0]
    assert (first.value, first.note) == ("0.950", "")
    writer.write_json(run.path / layout.GAINS, [gain(best={"accuracy": 0.7, **ends})])
    assert tiles_of(Run(run.path), ENGLISH).tiles[0].note == "95 %: 0.600 to 0.800"


def test_the_number_of_images_says_of_which_split(ended: Callable[..., Run]) -> None:
    assert "Images, train" in [tile.label for tile in tiles_of(ended([gain()]), ENGLISH).tiles]


def test_a_run_without_val_was_trained(ended: Callable[..., Run]) -> None:
    """What train_ratio=1 leaves: no BEST, no row of val, an evaluation of train at the last step."""
    run = ended([])
    rows = (run.path / layout.EVALS).read_text().splitlines()
    kept = [row for row in rows if json.loads(row)["split"] == "train"]
    (run.path / layout.EVALS).write_text("".join(f"{row}\n" for row in kept))
    (run.path / layout.CHECKPOINTS / layout.BEST).unlink()
    last = run.pointer(layout.LAST)
    evaluations = run.path / layout.EVALUATIONS
    shutil.rmtree(next(evaluations.glob("val@*")))
    next(evaluations.glob("test@*")).rename(evaluations / f"train@{last}")
    found = verdict_of(run, None, ENGLISH)
    assert found.word == "Trained" and "no val to measure it on" in found.sentence
    seen = kept_evaluation(run)
    assert seen is not None and (seen.split, seen.step) == ("train", last)
    assert "accuracy, train" in [tile.label for tile in tiles_of(run, ENGLISH).tiles]


def test_time_that_was_spent_on_data_is_waiting(ended: Callable[..., Run]) -> None:
    run = ended([gain()])
    writer.write_status(run.path, "finished", step=8, time={"steps": 1.0, "data": 1.0})
    told = dict(facts.environment(Run(run.path), ENGLISH).rows)["where the time went"]
    assert "waiting for data 50 %" in told and "mages" not in told


@pytest.mark.parametrize("kind", ["file", "compress"])
def test_what_was_made_is_not_diagnosed(small_run: Path, ended: Callable[..., Run], kind: str) -> None:
    model = json.loads((small_run / layout.RESOLVED).read_text())["model"]
    model["source"]["kind"] = kind
    rows = facts.commands(ended([gain()], model=model), ENGLISH).rows
    assert any("diagnose" in row[1] for row in rows) is (kind == "file")
