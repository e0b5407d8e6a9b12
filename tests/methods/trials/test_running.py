"""Trials: a judge that pauses costs nothing, one that fails harms no other, and nothing is left running."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warmstart.errors import Interrupted, UserError
from warmstart.methods.trials.process import Launch, Process
from warmstart.methods.trials.running import run_trials, slots_of
from warmstart.methods.trials.trial import Decision, Outcome, Row, Slot, Trial
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.verify.differences import first_difference

Make = Callable[..., Trial]
ONE = [Slot("cpu", 1)]


def go_on(trial: Trial, rows: list[Row]) -> Decision:
    return "go on"


def test_a_paused_trial_goes_on_to_the_same_bits(trial: Make, launch: Launch) -> None:
    straight, halved = trial(0), trial(1)
    asked: list[tuple[int, int]] = []

    def halfway(trial: Trial, rows: list[Row]) -> Decision:
        asked.append((trial.number, rows[-1]["step"]))
        return "pause" if trial.number == 1 and rows[-1]["epoch"] >= 2 else "go on"

    found = {
        each.trial.number: each for each in run_trials([straight, halved], ONE * 2, halfway, launch=launch)
    }
    assert found[0].state == "finished" and found[0].step == 12
    # On a busy machine the run may be at its end before it is told.
    assert found[1].state in ("paused", "finished") and found[1].step >= 6
    assert [step for number, step in asked if number == 0] == [0, 3, 6, 9, 12]
    assert not (straight.run / layout.GAINS).exists(), "test is nobody's business in a trial"
    held = [*run_trials([halved], ONE, halfway, launch=no_launch)] if found[1].state == "paused" else []
    assert all(each.state == "paused" for each in held), "held back by its rows, and no process is started"
    (again,) = run_trials([halved], ONE, go_on, launch=launch)
    assert again.state == "finished"
    assert first_difference(Run(straight.run), Run(halved.run)) is None
    (done,) = run_trials([halved], ONE, go_on, launch=no_launch)
    assert done.state == "finished" and done.best("accuracy") == again.best("accuracy") is not None


def no_launch(trial: Trial, slot: Slot) -> Process:
    raise AssertionError(f"trial {trial.number} needs no process")


def test_a_trial_that_fails_says_why_and_the_next_is_asked_for_after_it(trial: Make, launch: Launch) -> None:
    taken: list[Outcome] = []

    def source() -> Iterator[Trial | None]:
        yield trial(0, model="timm:no_such_model")
        while not taken:  # it is running
            yield None
        assert taken[0].trial.number == 0
        yield trial(1, epochs=1)

    for outcome in run_trials(source(), ONE * 2, go_on, launch=launch):
        taken.append(outcome)
    first, second = taken
    assert first.state == "failed" and "no_such_model" in first.reason and first.best("accuracy") is None
    assert second.state == "finished" and second.step == 3


def test_sigint_saves_every_trial_and_leaves_nothing_running(trial: Make, launch: Launch) -> None:
    started: list[Process] = []

    def remembered(trial: Trial, slot: Slot) -> Process:
        started.append(launch(trial, slot))
        return started[-1]

    sent = []

    def interrupt(trial: Trial, rows: list[Row]) -> Decision:
        if rows[-1]["step"] == 3 and not sent:  # a second one would end this process
            sent.append(trial.number)
            os.kill(os.getpid(), signal.SIGINT)
        return "go on"

    made = [trial(0, epochs=5000), trial(1, epochs=5000)]
    with pytest.raises(Interrupted, match="states are saved"):
        [*run_trials(made, ONE * 2, interrupt, launch=remembered)]
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    begun = [each for each in made if layout.is_run(each.run)]
    assert begun, "one was interrupted after a validation"
    assert {Run(each.run).status["state"] for each in begun} == {"interrupted"}
    assert all(Run(each.run).pointer(layout.LAST) is not None for each in begun)


def test_when_the_time_is_over_trials_are_paused_and_none_begins(trial: Make, launch: Launch) -> None:
    end = time.monotonic() + 3
    found = [*run_trials([trial(0, epochs=5000), trial(1)], ONE, go_on, until=end, launch=launch)]
    assert [(each.trial.number, each.state) for each in found] == [(0, "paused")]
    assert not trial(1).run.exists()


def test_a_process_whose_parent_was_killed_is_ended_before_its_trial_goes_on(
    trial: Make, launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    from warmstart.methods.trials.process import prepare
    from warmstart.run import writer
    from warmstart.run.process import birth_of

    lost = trial(0, epochs=5000)
    prepare(lost)
    process = launch(lost, ONE[0])
    pid = process.pid  # type: ignore[attr-defined]
    who = {"pid": pid, "born": birth_of(pid), "host": platform.node()}
    writer.write_json(lost.beside(".pid"), who)
    while not Run(lost.run).checkpoint_steps():
        time.sleep(0.05)
        assert process.poll() is None, lost.beside(".txt").read_text()
    prepare(lost)
    assert process.poll() == 130 and Run(lost.run).status["state"] == "interrupted"
    assert not lost.beside(".pid").exists()


def test_what_is_no_run_yet_is_begun_anew(trial: Make, launch: Launch) -> None:
    made = trial(0, epochs=1)
    (made.run / "checkpoints").mkdir(parents=True)
    (only,) = run_trials([made], ONE, go_on, launch=launch)
    assert only.state == "finished"


def test_a_run_of_other_settings_is_not_taken_over(trial: Make, launch: Launch) -> None:
    [*run_trials([trial(0, epochs=1)], ONE, go_on, launch=launch)]
    with pytest.raises(UserError, match=r"made with other settings than trial 0 has: optim\.lr"):
        [*run_trials([trial(0, epochs=1, lr=0.02)], ONE, go_on, launch=no_launch)]


def test_a_process_that_was_killed_is_told_from_one_that_failed(trial: Make, launch: Launch) -> None:
    made, started = trial(0, epochs=5000), list[Process]()
    made.beside(".txt").write_text("error: of a process before it")

    def remembered(trial: Trial, slot: Slot) -> Process:
        started.append(launch(trial, slot))
        return started[-1]

    def kill(trial: Trial, rows: list[Row]) -> Decision:
        if rows[-1]["step"] >= 3:
            os.kill(started[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        return "go on"

    (only,) = run_trials([made], ONE, kill, launch=remembered)
    assert only.state == "failed" and only.was_killed and "signal 9" in only.reason


def test_slots_share_the_cores_or_have_a_device_each() -> None:
    assert slots_of((), None) == [Slot()]
    assert [slot.device for slot in slots_of(("cuda:0", "cuda:1"), None)] == ["cuda:0", "cuda:1"]
    two = slots_of((), 2)
    assert len(two) == 2 and two[0].threads == max(1, (os.cpu_count() or 1) // 2)


def test_settings_have_no_places_that_trials_would_share(trial: Make, tmp_path: Path) -> None:
    made = trial(0, save_as=str(tmp_path / "all.pt"), name="all")
    assert (made.config.output.save_as, made.config.output.name) == (None, None)
