"""The short list of advice, tried: who goes on, what is trained, and that an interruption costs nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import forked
import warmstart as ws
from warmstart.analysis.compare.looks import count_pair
from warmstart.analysis.compare.sides import open_side
from warmstart.config import io
from warmstart.errors import Interrupted, UserError
from warmstart.methods.trials.process import Process
from warmstart.methods.trials.trial import Slot, Trial, validations
from warmstart.methods.tryout.halving import Candidate
from warmstart.methods.tryout.reached import best_of
from warmstart.methods.tryout.record import known_plan, new_plan
from warmstart.methods.tryout.result import TryoutResult
from warmstart.methods.tryout.tryout import Outcomes, Tried, try_out
from warmstart.run import layout
from warmstart.run.reader import Run

pytestmark = pytest.mark.usefixtures("one_thread")


DAMAGES = ({"asked": 3}, {"spent": [1.0]}, {"spent": ["x"]}, {"passed": None}, {"candidates": [3]})


def no_launch(trial: Trial, slot: Slot) -> Process:
    raise AssertionError(f"trial {trial.number} needs no process")


@pytest.fixture
def given(small_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Three strategies: everything trains, at three rates."""
    without_rate = {name: value for name, value in small_settings.items() if name != "lr"}
    return {**without_rate, "epochs": 4, "output_dir": str(tmp_path / "out")}


def test_the_best_half_goes_on_and_an_interruption_costs_nothing(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while the second candidate trains; the verb goes on by the same words; then nothing is trained."""
    started: list[int] = []

    def interrupted(trial: Trial, slot: Slot) -> Process:
        started.append(trial.number)
        process = forked.launch(trial, slot)
        if len(started) == 2:
            kept = json.loads((tmp_path / "out" / layout.TRYOUT).read_text())
            assert kept["passed"] > kept["spent"][0] > 0, "a crash would not give the budget back"
            with pytest.raises(UserError, match=r"process \d+ is working in .*out"):
                try_out(given, "balanced", 3600.0, no_launch)
            os.kill(os.getpid(), signal.SIGINT)
        return process

    with pytest.raises(Interrupted, match=r"(?s)were interrupted.*the same command goes on in .*out"):
        try_out(given, "balanced", 3600.0, interrupted)
    assert started == [0, 1]
    monkeypatch.setattr("warmstart.methods.tryout.tryout.launch_here", forked.launch)
    settings, target = {**given, "time_budget": "1h"}, tmp_path / "best.yaml"
    data, model = settings.pop("data"), settings.pop("model")
    made = ws.advise(data, model, run=True, to=str(target), **settings)
    assert isinstance(made, TryoutResult) and made.best is not None
    found, best = made.found, made.best
    assert [each.name for each in found.tried] == ["full", "full-faster", "full-slower"]
    assert [each.rule for each in found.tried] == ["advised", "try.faster", "try.slower"]
    assert found.shares == (0.5, 1) and found.is_over
    # By hand: the best val accuracy of what was trained up to the middle, the earlier candidate among equals.
    middle = []
    for each in found.tried:
        rows = [row for row in validations(Path(each.run)) if 0 < row["step"] <= 6]
        value = best_of(rows, "accuracy")
        assert value is not None and value[0] == each.values[0]
        middle.append(value[0])
    assert found.best == middle.index(max(middle))
    assert best.state == "finished" and (best.step, best.total) == (12, 12) and len(best.values) == 2
    out = [each for each in found.tried if each is not best]
    assert all(len(each.values) == 1 and each.step >= 6 for each in out)
    # Only the best is measured on test, and compare knows that it is one of three.
    assert Run(Path(best.run)).gains and made.gains[0].startswith("val: ")
    assert not any((Path(each.run) / layout.GAINS).exists() for each in out)
    sides = [open_side(each.run) for each in found.tried[:2]]
    assert count_pair(sides, "val", sides[0].data["fingerprint"]).largest_table == 3
    config = io.load({}, f"{given['output_dir']}/{layout.BEST_CONFIG}").config
    assert (config.optim.lr, config.train.epochs, config.output.output_dir) == (best.lr, 4, None)
    assert io.load({}, str(target)).config == config
    told = made.to_json()
    assert told["best"] == best.name and [each["rank"] for each in told["tried"]] == [1, 2, 3]
    assert json.dumps(told) and "best of 3 on the same val images" in made.text()
    assert try_out(given, "balanced", 0.0, no_launch).tried == found.tried, "nothing is left that takes time"


def test_what_cannot_be_tried_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no val images"):
        try_out({**given, "val_ratio": 0.0}, "balanced", None, no_launch)
    with pytest.raises(UserError, match="left of --time-budget: too short"):
        try_out(given, "balanced", 1.0, no_launch)
    assert not Path(given["output_dir"]).exists()
    with pytest.raises(UserError, match="--device-memory with --run"):
        ws.advise(given["data"], given["model"], run=True, device_memory="8GB")
    for name in ("name", "save_as"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} with --run: every strategy"):
            ws.advise(given["data"], given["model"], run=True, **{name: "x.pt"})
    with pytest.raises(UserError, match="a time such as 20m"):
        ws.advise(given["data"], given["model"], run=True, time_budget="5epochs")


def test_the_reason_is_told_where_all_fail(given: dict[str, Any]) -> None:
    """With the rate given and nothing to keep, one strategy is left."""

    def failing(trial: Trial, slot: Slot) -> Process:
        return forked.launch(trial, Slot("nonsense"))

    with pytest.raises(
        UserError, match=r"all strategies failed; the first: --device 'nonsense' is not a device"
    ):
        try_out({**given, "lr": 0.01}, "balanced", None, failing)


def test_one_that_fails_makes_room_and_the_others_are_compared(
    given: dict[str, Any],
) -> None:
    def failing(trial: Trial, slot: Slot) -> Process:
        return forked.launch(trial, Slot("nonsense") if trial.number == 0 else slot)

    flags = {**given, "epochs": 2}
    folder = Path(flags.pop("output_dir"))
    made = [Candidate(name, "advised", 1e-3, 2, 1.0, {}) for name in ("a", "b")]
    new_plan(folder, {**flags, "goal": "balanced"}, made)
    found = try_out({**flags, "output_dir": str(folder)}, "balanced", None, failing)
    assert [each.state for each in found.tried] == ["failed", "finished"]
    assert "'nonsense' is not a device" in found.tried[0].reason and found.tried[0].values == ()
    assert found.best == 1 and len(found.tried[1].values) == 2 and found.is_over


def test_a_folder_knows_by_which_words_it_was_begun(tmp_path: Path) -> None:
    folder, asked = tmp_path / "out", {"data": Path("d"), "epochs": 4, "lr": None, "output_dir": "out"}
    assert known_plan(folder, asked) is None
    new_plan(folder, asked, [])
    assert known_plan(folder, {"data": "d", "epochs": "4"}) is not None
    with pytest.raises(UserError, match=r"other words .epochs was 4, is 5"):
        known_plan(folder, {**asked, "epochs": 5})
    with pytest.raises(UserError, match="is not empty"):
        new_plan(folder, asked, [])
    whole = json.loads((folder / layout.TRYOUT).read_text())
    for damaged in ("{", *(json.dumps({**whole, **each}) for each in DAMAGES)):
        (folder / layout.TRYOUT).write_text(damaged)
        with pytest.raises(UserError, match=r"tryout.json is damaged"):
            known_plan(folder, asked)


def test_words_where_nothing_came_far() -> None:
    tried = (
        Tried("full", "advised", 1e-3, "out/0", (), 3, 12, 4.0, "paused"),
        Tried("head", "try.head", 1e-3, "out/1", (), 0, 0, 1.0, "failed", "out of memory"),
    )
    text = TryoutResult(Outcomes("out", "accuracy", (0.5, 1.0), tried, None, False)).text()
    assert "head failed: out of memory" in text and "was used up before the end" in text
    assert text.endswith("nothing can be said")
