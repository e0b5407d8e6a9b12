"""Proof that a recorded run gives the same numbers today: it is done again in a process of its own, and compared."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warmstart import __version__
from warmstart.console import log, progress
from warmstart.engine.record import versions
from warmstart.engine.state import OUT_OF_TIME
from warmstart.errors import UserError
from warmstart.inference.device import resolve_device, resolve_precision
from warmstart.run import layout
from warmstart.run.reader import Run, open_run
from warmstart.shown import Shown
from warmstart.verify.again import NOWHERE_ELSE, Moved, check_repeatable, prepare_again
from warmstart.verify.differences import (
    Difference,
    difference_in_files,
    difference_in_training,
    training_rows,
)
from warmstart.verify.processes import running

_LOOKS_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Other:
    """Something of the environment that is not what it was."""

    what: str
    then: str
    now: str

    def text(self) -> str:
        return f"{self.what} {self.then} then, {self.now} now"


@dataclass(frozen=True)
class Reproduction(Shown):
    """`difference` is the first thing that is not as recorded, None where all is.

    Compared were rows up to `until`, and where `is_whole` checkpoints and status. `repeats` says whether a second try,
    asked for only where the first differs, agrees with the first. `scores` are the validations that differ most:
    (step, then, now) by the metric that selects.
    """

    run: str
    until: int
    total: int
    is_whole: bool
    num_rows: int
    difference: Difference | None
    environment: tuple[Other, ...]
    warnings: tuple[str, ...]  # that the run did not give then
    repeats: bool | None
    metric: str
    worst: tuple[int, float, float] | None
    notes: tuple[str, ...]
    folder: str | None  # where the new run was kept

    @property
    def is_equal(self) -> bool:
        return self.difference is None

    def to_json(self) -> dict[str, Any]:
        found = {**self.__dict__, "is_equal": self.is_equal, "causes": self.causes()}
        found["environment"] = [other.__dict__ for other in self.environment]
        return found | {"difference": None if self.difference is None else self.difference.__dict__}

    def causes(self) -> list[str]:
        """What is known to be another thing than then, and gives other numbers."""
        if self.difference is None:
            return []
        found = [other.text() for other in self.environment]
        if self.repeats is False:
            found.insert(
                0,
                "these settings do not give the same numbers twice on this device today (on a GPU, kernels that add in"
                " any order): two tries differ from each other as well",
            )
        return found + list(self.warnings)

    def text(self) -> str:
        lines = self._same() if self.difference is None else [*self._other(self.difference), *self._why()]
        lines += self.notes
        if self.folder is not None:
            lines.append(f"the new run is in {self.folder}")
        return "\n".join(lines)

    def _same(self) -> list[str]:
        files = ", weights, optimizer and random state, counters, best checkpoint" if self.is_whole else ""
        head = f"the same to the bit: {self.num_rows} rows over {self.until} of {self.total} steps{files}"
        return [head, *(f"although {other.text()}" for other in self.environment)]

    def _other(self, difference: Difference) -> list[str]:
        lines = ["NOT the same. The first thing that differs, then and now:", f"  {difference.text()}"]
        if self.worst is not None:
            step, then, now = self.worst
            apart = f"by at most {abs(now - then):.2g}: {then:.4f} then, {now:.4f} now, step {step}"
            lines.append(f"val {self.metric} is apart {apart}")
        return lines

    def _why(self) -> list[str]:
        if causes := self.causes():
            return ["what may be the cause:", *(f"  {cause}" for cause in causes)]
        return [
            "nothing is known to be another thing than then: not the versions, the device, the threads, "
            "or names and sizes of the data's files; what is not recorded (the processor, a driver, a library below "
            "torch, contents of files that have kept their size) may be"
        ]


def reproduce(
    path: str, steps: int | None = None, output_dir: str | None = None, moved: Moved = NOWHERE_ELSE
) -> Reproduction:
    """Do the run at `path` again, to its end or to step `steps` of the same schedule, and compare.

    In a temporary folder, or in the new folder `output_dir`, which then stays.

    Raises:
        UserError: a run that is in progress, that trained nothing, or whose data or weights are gone or others; less
            than one step.
    """
    if steps is not None and steps < 1:
        raise UserError(
            f"--steps {steps} compares nothing", "1 or more", "leave it out to do the whole run again"
        )
    run = open_run(path)
    check_repeatable(run)
    until, notes = _compared(run, steps)
    if output_dir is not None:
        return _reproduce(run, Path(output_dir), moved, until, notes, output_dir)
    with tempfile.TemporaryDirectory(prefix="warmstart-reproduce-") as name:
        return _reproduce(run, Path(name) / "run", moved, until, notes, None)


def _compared(run: Run, steps: int | None) -> tuple[int | None, tuple[str, ...]]:
    """Up to which step rows are compared (None: to the end, and what is there then), and why not further."""
    state, step = run.status["state"], max(row["step"] for row in (*run.metrics.rows, *run.evals.rows))
    notes: list[str] = []
    until: int | None = None
    if state != "finished":
        until = step
        notes.append(f"the run itself is {state}: it was compared up to its last row, of step {step}")
    elif run.status.get("stop_reason") == OUT_OF_TIME:
        until = step - 1  # where it ends, a run has rows that no schedule plans
        notes.append(
            f"the clock ended the run at step {step}, which no second run does: compared up to the step before"
        )
    elif run.pointer(layout.LAST) is None:
        until = step
        notes.append("the run has no checkpoints any more: only its rows were compared")
    end = step if until is None else until
    trained = [
        row["step"]
        for name in (layout.METRICS, layout.EVALS)
        for row in training_rows(run, name, end).rows
        if row["step"] > 0
    ]
    if not trained:
        notes.append("only the untrained start was compared: there is no row of training up to there")
    elif steps is not None and steps < end:
        until, notes = max(steps, min(trained)), []
        if until > steps:
            notes.append(
                f"--steps {steps} ends before the first row of training: compared up to that, of step {until}"
            )
    if run.metrics.num_damaged or run.evals.num_damaged:
        num = run.metrics.num_damaged + run.evals.num_damaged
        notes.append(f"{num} damaged rows of the run were skipped")
    return until, tuple(notes)


def _reproduce(
    run: Run, folder: Path, moved: Moved, until: int | None, notes: tuple[str, ...], kept: str | None
) -> Reproduction:
    environment = tuple(_others(run, moved.device))
    for other in environment:
        log.warning("reproduce: %s", other.text())
    new = Run(prepare_again(run, folder, moved))
    wanted = sum(len(training_rows(run, name, until).rows) for name in (layout.METRICS, layout.EVALS))
    last = run.resolved["pace"]["total_steps"]
    log.info("reproduce: %s again, to step %d of %d", run.path, last if until is None else until, last)
    told = _train(run, new, until, moved.device)
    difference = difference_in_training(run, new, until)
    if difference is None and until is None:
        difference = difference_in_files(run, Run(new.path))
    known = _warnings(run)
    repeats = None if difference is None else _repeats(run, new, difference.step, moved)
    return Reproduction(
        run=str(run.path),
        until=run.status["step"] if until is None else until,
        total=last,
        is_whole=until is None,
        num_rows=wanted,
        difference=difference,
        environment=environment,
        warnings=tuple(warning for warning in told if warning not in known),
        repeats=repeats,
        metric=run.resolved["select_by"],
        worst=_worst(run, new, until),
        notes=notes,
        folder=kept,
    )


def _train(run: Run, new: Run, until: int | None, device: str | None) -> list[str]:
    """To the end, or until there are as many rows as `run` has up to `until`. The warnings that it gave.

    UserError: it ended with an error before that.
    """
    names = (layout.METRICS, layout.EVALS)
    wanted = {name: len(training_rows(run, name, until).rows) for name in names}
    with progress("reproducing", run.resolved["pace"]["total_steps"]) as bar:

        def has_enough() -> bool:
            there = {name: training_rows(new, name).rows for name in names}
            bar.update(max((rows[-1]["step"] for rows in there.values() if rows), default=0))
            return until is not None and all(len(there[name]) >= wanted[name] for name in names)

        with running("resume", str(new.path), *(() if device is None else ("--device", device))) as process:
            if process.wait_until(has_enough, _LOOKS_EVERY):
                told = _warnings(new)  # before that of being stopped
                process.stop()
                return told
            if process.wait() != 0 and not has_enough():
                raise UserError(f"{run.path} cannot be done again: {process.reason()}")
            return _warnings(new)


def _repeats(run: Run, new: Run, step: int, moved: Moved) -> bool:
    """Whether a second try, up to the step of the first difference, agrees with the first."""
    log.info("reproduce: they differ at step %d; once more, to see whether it repeats itself", step)
    with tempfile.TemporaryDirectory(prefix="warmstart-reproduce-") as name:
        second = Run(prepare_again(run, Path(name) / "run", moved))
        _train(new, second, step, moved.device)
        return difference_in_training(new, second, step) is None


def _others(run: Run, asked: str | None) -> Iterator[Other]:
    """What of the environment is not as the run recorded it, and can change numbers."""
    then = run.resolved
    if then["warmstart"] != __version__:
        yield Other("warmstart", then["warmstart"], __version__)
    now = versions()
    for name, version in then["versions"].items():
        if version != now.get(name):
            yield Other(name, version or "not installed", now.get(name) or "not installed")
    device = resolve_device(asked or run.config["train"]["device"])
    if str(device).removesuffix(":0") != then["device"].removesuffix(":0"):
        yield Other("device", then["device"], str(device))
    else:
        precision, _ = resolve_precision(run.config["train"]["precision"], device)
        found = str(precision or torch.float32).removeprefix("torch.")
        if found != then["precision"]:
            yield Other("precision", then["precision"], found)
    if then["num_processes"] != 1:
        yield Other("processes", str(then["num_processes"]), "1, which agrees to rounding only")
    host = run.status.get("host")
    if host is not None and host != platform.node():
        yield Other("the machine was", host, platform.node())


def _warnings(run: Run) -> list[str]:
    path = run.path / layout.LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line.partition(" WARNING ")[2] for line in lines if " WARNING " in line]


def _worst(run: Run, new: Run, until: int | None) -> tuple[int, float, float] | None:
    """The validation by which the two are furthest apart."""
    metric = run.resolved["select_by"]
    then, now = (
        {
            row["step"]: row[metric]
            for row in training_rows(each, layout.EVALS, until).rows
            if row["split"] == "val" and row.get("kind") is None and row.get(metric) is not None
        }
        for each in (run, new)
    )
    pairs = [(step, then[step], now[step]) for step in then if step in now]
    return max(pairs, key=lambda pair: abs(pair[2] - pair[1]), default=None)
