"""Several trials at once: started as slots are free, watched by their rows, stopped by a judge, none left behind.

A run is judged by what it writes into its directory, never by what it prints. A trial that is paused or stopped has
saved its state, and goes on from there to the bit: successive halving trains nothing twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from warmstart.console import log, progress
from warmstart.engine.signals import stop_on_signal
from warmstart.errors import Interrupted
from warmstart.methods.trials.process import (
    Launch,
    Process,
    check_settings,
    is_ours,
    last_words,
    launch_here,
    prepare,
)
from warmstart.methods.trials.trial import (
    Decision,
    Judge,
    Outcome,
    Slot,
    State,
    Trial,
    is_finished,
    validations,
)
from warmstart.run import layout

_LOOKS_EVERY = 0.1  # seconds
_ASKED: dict[Decision, State] = {"pause": "paused", "stop": "stopped"}


def slots_of(devices: Sequence[str], number: int | None) -> list[Slot]:
    """One slot for each device; else `number` slots of the device in the settings, which share the CPU's cores."""
    if devices:
        return [Slot(device) for device in devices]
    num = number or 1
    return [Slot(None, None if num == 1 else max(1, (os.cpu_count() or 1) // num))] * num


def run_trials(
    trials: Iterable[Trial | None],
    slots: Sequence[Slot],
    judge: Judge,
    *,
    until: float | None = None,
    launch: Launch = launch_here,
    total: int | None = None,
) -> Iterator[Outcome]:
    """Run trials until there are no more, and give the outcome of each as soon as it ends.

    `trials` is asked for the next one when a slot is free and what ended before was taken; None from it means that
    there is none yet, but may be when another one has ended. A trial whose run exists goes on from its last checkpoint;
    one that is finished already, or that the judge holds back by the rows that it has, starts no process. After `until`
    (of time.monotonic) no trial begins, and those that run are paused. `total` is for the progress bar.

    Raises:
        Interrupted: by SIGINT or SIGTERM; the trials that ran have saved, and nothing is left running.
        UserError: a trial that another machine is writing, or whose run was made with other settings.
    """
    source, free, running = iter(trials), list(slots), list[_Running]()
    is_over, num_ended = False, 0
    try:
        with stop_on_signal() as interrupted, progress("trials", total or 0) as bar:
            while True:
                if interrupted():
                    raise Interrupted("the trials were interrupted; their states are saved")
                is_late = until is not None and time.monotonic() >= until
                while free and not is_over and not is_late:
                    trial = next(source, _END)
                    is_over = trial is _END
                    if not isinstance(trial, Trial):
                        break
                    begun = _begin(trial, free, judge, launch)
                    if isinstance(begun, Outcome):
                        num_ended += 1
                        yield begun
                    else:
                        running.append(begun)
                bar.update(num_ended, f"{len(running)} running", total)
                if not running:
                    return
                for each in list(running):
                    if is_late:
                        each.ask("pause")
                    outcome = each.look(judge)
                    if outcome is not None:
                        running.remove(each)
                        free.append(each.slot)
                        num_ended += 1
                        yield outcome
                time.sleep(_LOOKS_EVERY)
    finally:
        _stop_all(running)


_END = object()


def _begin(trial: Trial, free: list[Slot], judge: Judge, launch: Launch) -> _Running | Outcome:
    check_settings(trial)
    if is_finished(trial.run):
        return Outcome(trial, "finished", validations(trial.run))
    prepare(trial)
    begun = _Running(trial, free[0])
    decision = begun.judged(judge)
    if decision != "go on":
        return Outcome(trial, _ASKED[decision], validations(trial.run))
    begun.process = launch(trial, free.pop(0))
    return begun


@dataclass
class _Running:
    """A trial with its process; `num_judged` of its rows were judged, `size` is that of their file then."""

    trial: Trial
    slot: Slot
    process: Process | None = None
    asked: State | None = None
    num_judged: int = 0
    size: int = -1
    started: float = field(default_factory=time.monotonic)

    def ask(self, decision: Decision) -> None:
        """Have it save and leave; said once: a second signal would make it leave without saving."""
        if decision != "go on" and self.asked is None:
            assert self.process is not None, "a trial that was never started"
            self.asked = _ASKED[decision]
            self.process.terminate()

    def judged(self, judge: Judge) -> Decision:
        """What the judge says about the validations since it was asked last, one by one."""
        file = self.trial.run / layout.EVALS
        size = file.stat().st_size if file.exists() else 0
        if size == self.size:
            return "go on"
        self.size, rows = size, validations(self.trial.run)
        self.num_judged = min(self.num_judged, len(rows))  # a rescue takes rows back
        while self.num_judged < len(rows):
            self.num_judged += 1
            decision = judge(self.trial, rows[: self.num_judged])
            if decision != "go on":
                return decision
        return "go on"

    def look(self, judge: Judge) -> Outcome | None:
        """What has come of it; None while it runs."""
        assert self.process is not None, "a trial that was never started"
        code = self.process.poll()
        if self.asked is None:
            self.ask(self.judged(judge))
        if code is None:
            return None
        rows, seconds = validations(self.trial.run), time.monotonic() - self.started
        if is_finished(self.trial.run):
            return Outcome(self.trial, "finished", rows, seconds)
        if self.asked is not None:
            return Outcome(self.trial, self.asked, rows, seconds)
        was_killed = code < 0 and is_ours(self.trial)
        return Outcome(self.trial, "failed", rows, seconds, last_words(self.trial, code), was_killed)


def _stop_all(running: Sequence[_Running]) -> None:
    """Have every process save and leave, and wait for it; a second Ctrl-C kills them."""
    if not running:
        return
    log.info("stopping %d trials", len(running))
    try:
        for each in running:
            each.ask("pause")
        for each in running:
            while each.process is not None and each.process.poll() is None:
                time.sleep(_LOOKS_EVERY)
    finally:
        for each in running:
            if each.process is not None and each.process.poll() is None:
                each.process.kill()
