"""What a sweep found: one row per trial, the best of them on val, and what that is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import table
from warmstart.errors import listing
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.shown import Shown

FORMAT = 1
_MOST_ROWS = 20


@dataclass(frozen=True)
class TrialRow:
    """A trial as far as it has come: `state` is finished, stopped, paused, running, failed or waiting, `value` its best
    on val (of step `best_step`, with its 95 % interval from `low` to `high`), `step` the last one that was validated of
    `total_steps`, `seconds` of training."""

    number: int
    state: str
    values: dict[str, str]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    best_step: int | None = None
    step: int = 0
    total_steps: int | None = None
    seconds: float = 0.0
    run: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Swept(Shown):
    """A sweep; `best` is the number of the best finished trial, None before there is one. `waits` says that trials are
    left, `importance` is the share of each setting in the differences, empty where nothing can be said."""

    folder: str
    metric: str | None
    method: str
    prune: str
    seed: int
    base: str
    space: dict[str, str]
    storage: str
    trials: tuple[TrialRow, ...]
    best: int | None
    importance: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def waits(self) -> bool:
        return any(row.state in ("waiting", "paused", "running") for row in self.trials)

    @property
    def best_row(self) -> TrialRow | None:
        return next((row for row in self.trials if row.number == self.best), None)

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.folder) / name for name in (layout.SWEEP_PARALLEL, layout.SWEEP_IMPORTANCE)]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "finished": not self.waits, **asdict(self), "best": self.best}

    def alike(self) -> list[int]:
        """The finished trials whose value lies within the interval of the best one's."""
        best = self.best_row
        if best is None or best.low is None or best.high is None:
            return []
        return [
            row.number
            for row in self.ranked()
            if row.state == "finished" and row is not best and best.low <= (row.value or 0.0) <= best.high
        ]

    def ranked(self) -> list[TrialRow]:
        """The finished ones first, then those that were stopped, each by their value; then the others."""
        order = {"finished": 0, "stopped": 1, "paused": 2, "running": 3, "failed": 4, "waiting": 5}
        sign = 1 if self.metric is None else SELECTION_METRICS[self.metric]
        return sorted(
            self.trials,
            key=lambda row: (order[row.state], 0.0 if row.value is None else -sign * row.value, row.number),
        )

    def text(self) -> str:
        rows = [row for row in self.ranked() if row.state != "waiting"]
        names = list(self.space)
        cells = [
            (
                str(row.number),
                row.state,
                row.value,
                "-" if row.total_steps is None else f"{row.step}/{row.total_steps}",
                *(row.values.get(name) for name in names),
                row.seconds,
            )
            for row in rows[:_MOST_ROWS]
        ]
        head = ("trial", "state", f"{self.metric or 'value'} of val", "steps", *names, "seconds")
        more = len(rows) - _MOST_ROWS
        return "\n".join(
            [
                *self._verdict(),
                *(f"note: {note}" for note in self.notes),
                "",
                table("", head, cells, left=2),
                *([f"... and {more} more in {Path(self.folder) / layout.SWEEP}"] if more > 0 else []),
                *self._spent(rows),
                *self._important(),
                "",
                *self._next(),
            ]
        )

    def _place(self, row: TrialRow) -> str:
        """Of its run: below the folder as it was named, where it is there."""
        path, folder = Path(str(row.run)), Path(self.folder)
        return (
            str(folder / path.relative_to(folder.absolute()))
            if path.is_relative_to(folder.absolute())
            else str(path)
        )

    def _verdict(self) -> list[str]:
        row = self.best_row
        if row is None:
            return ["no trial has come to its end yet"]
        told = ", ".join(f"{name} {value}" for name, value in row.values.items())
        num = sum(each.value is not None for each in self.trials)
        interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
        lines = [
            f"best of {num}: trial {row.number} ({told}), {self.metric} of val {row.value:.4f}{interval}"
        ]
        if row.best_step == 0:
            lines.append("That is the start: nothing that was trained is better on val.")
        if alike := self.alike():
            lines.append(f"Val cannot tell it from trial {listing(alike, 8)}.")
        gains = Run(Path(str(row.run))).gains if _is_here(row) else []
        on_test = [gain for gain in gains if gain["split"] == "test"]
        if num > 1:
            asked = "; test was asked of nobody else:" if on_test else "."
            lines.append(f"It was chosen among {num} on val, so that number is too kind{asked}")
        of_task = [f" of {gain['task']}" if gain.get("task") else "" for gain in on_test]
        lines += [
            f"  test{own}: {gain['verdict']}: {gain['change']}"
            for own, gain in zip(of_task, on_test, strict=True)
        ]
        return lines

    def _spent(self, rows: list[TrialRow]) -> list[str]:
        """What was not trained."""
        stopped = [row for row in rows if row.state == "stopped" and row.total_steps]
        if not stopped:
            return []
        done, planned = sum(row.step for row in stopped), sum(row.total_steps or 0 for row in stopped)
        return [f"{len(stopped)} trials were stopped early, after {done} of their {planned} steps"]

    def _important(self) -> list[str]:
        if not self.importance:
            return []
        told = ", ".join(
            f"{name} {share:.0%}"
            for name, share in sorted(self.importance.items(), key=lambda pair: -pair[1])
        )
        num = sum(row.state == "finished" for row in self.trials)
        return [f"importance, by {num} finished trials: {told}{' (few trials: a hint)' if num < 20 else ''}"]

    def _next(self) -> list[str]:
        row = self.best_row
        lines = [f"sweep: {self.folder}"]
        if row is not None and _is_here(row):
            lines.append(f"run:   {self._place(row)}")
        if row is not None:
            lines.append(f"again: warmstart finetune --config {Path(self.folder) / layout.BEST_CONFIG}")
        second = next(
            (each for each in self.ranked() if each.state == "finished" and each.number != self.best), None
        )
        if row is not None and second is not None and _is_here(row) and _is_here(second):
            lines.append(
                f"is it better than the next? warmstart compare {self._place(second)} {self._place(row)} --split val"
            )
        if self.waits:
            lines.append(f"go on: warmstart sweep {self.folder}")
        return lines


def _is_here(row: TrialRow) -> bool:
    """Whether its run lies on this machine; of a storage that is shared it may lie on another."""
    return row.run is not None and layout.is_run(Path(row.run))
