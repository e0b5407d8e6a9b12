"""What the rules look at: a training as validations, rows and settings, whoever wrote them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.config.schema import SELECTION_METRICS
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run

OURS = "warmstart"
_Z = 1.96  # standard errors to each side of a 95 % interval


@dataclass(frozen=True)
class Validation:
    """Metrics of val at a step, and of training images measured in the same way; empty where they were not."""

    step: int
    epoch: float
    val: Mapping[str, float]
    train: Mapping[str, float]


class TrainRow(NamedTuple):
    """What was written between validations; None: not by this program."""

    step: int
    epoch: float
    loss: float | None
    lr: float | None = None


@dataclass(frozen=True)
class History:
    """A training in the order of its steps; `start` is the validation before the first step, where there is one.

    `means` are (epoch, mean training loss of it) as it was while the weights moved. `run` is None for other programs,
    whose settings nobody knows. `is_over`: finished, or stopped.
    """

    name: str
    program: str
    metric: str
    start: Validation | None
    validations: tuple[Validation, ...]
    rows: tuple[TrainRow, ...]
    means: tuple[tuple[float, float], ...] = ()
    state: str = "finished"
    num_damaged: int = 0
    run: Run | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_over(self) -> bool:
        return self.state not in ("running", "unknown")

    @property
    def sign(self) -> int:
        return SELECTION_METRICS.get(self.metric, -1 if "loss" in self.metric else 1)

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The metric on val at each validation after the start, more is better."""
        return self.sign * self.of_val(self.metric)

    def of_val(self, name: str) -> NDArray[np.float64]:
        return np.array([each.val.get(name, math.nan) for each in self.validations], dtype=np.float64)

    def of_train(self, name: str) -> NDArray[np.float64]:
        return np.array([each.train.get(name, math.nan) for each in self.validations], dtype=np.float64)

    @cached_property
    def best(self) -> Validation | None:
        """The best validation after the start, the first of equals."""
        if not len(self.scores) or not np.isfinite(self.scores).any():
            return None
        return self.validations[int(np.nanargmax(self.scores))]

    @cached_property
    def noise(self) -> float:
        """Standard error of the metric at the best validation, by the images of val; 0 where nobody measured it."""
        val = {} if self.best is None else self.best.val
        low, high = (val.get(f"{self.metric}_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            return float(high - low) / (2 * _Z)
        num, share = val.get("num_samples"), val.get(self.metric)
        if not num or share is None or not 0 <= share <= 1:
            return 0.0
        return math.sqrt(max(share * (1 - share), 1 / num) / num)

    @property
    def num_classes(self) -> int | None:
        """Of one class per image; None for anything else."""
        if self.run is None or self.run.resolved.get("task") != "classification":
            return None
        return len(self.run.resolved["model"]["classes"])

    def setting(self, path: str, default: Any = None) -> Any:
        """A setting of the run by `section.leaf`; `default` where nobody knows it."""
        if self.run is None:
            return default
        section, name = path.split(".", 1)
        return self.run.config.get(section, {}).get(name, default)

    @cached_property
    def peak_rate(self) -> float | None:
        rates = [row.lr for row in self.rows if row.lr is not None]
        return max(rates) if rates else None

    @cached_property
    def last_rate(self) -> float | None:
        return next((row.lr for row in reversed(self.rows) if row.lr is not None), None)


def lower_end(share: float, num: int) -> float:
    """Of the 95 % interval of a share of `num`: Wilson's (1927), which has a width for shares of 1 too."""
    z2 = _Z**2
    centre, half = share + z2 / (2 * num), _Z * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return (centre - half) / (1 + z2 / num)


def of_run(run: Run) -> History:
    """The history of a run directory, finished or in progress; of several tasks that of all together.

    Raises:
        UserError: the run has no row yet.
    """
    metrics, evals, resolved = run.metrics, run.evals, run.resolved
    first = resolved["pace"].get("first_step", 0)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in evals.rows:
        if row.get("kind") is None and "task" not in row:
            found.setdefault(row["step"], {})[row["split"]] = row
    points = [_validation(step, splits) for step, splits in sorted(found.items()) if "val" in splits]
    rows = tuple(
        TrainRow(row["step"], row["epoch"], row.get("loss"), row.get("lr"))
        for row in metrics.rows
        if row.get("kind") == "train"
    )
    if not points and not rows:
        raise UserError(
            f"{run.path} has no row yet: nothing was trained or measured",
            "a run with rows in metrics.jsonl or evals.jsonl",
            f"look at {run.path / layout.LOG}; `warmstart resume {run.path}` goes on",
        )
    means = [
        (row["epoch"], row["train_loss_avg"])
        for row in metrics.rows
        if row.get("kind") == "epoch" and row.get("train_loss_avg") is not None
    ]
    return History(
        name=str(run.path),
        program=OURS,
        metric=resolved["select_by"],
        start=next((point for point in points if point.step == first), None),
        validations=tuple(point for point in points if point.step > first),
        rows=rows,
        means=tuple(means),
        state=run.status["state"],
        num_damaged=metrics.num_damaged + evals.num_damaged,
        run=run,
        notes=_notes(run),
    )


def _validation(step: int, splits: dict[str, dict[str, Any]]) -> Validation:
    val, train = (
        {name: value for name, value in splits.get(split, {}).items() if isinstance(value, (int, float))}
        for split in ("val", "train")
    )
    return Validation(step, float(splits["val"]["epoch"]), val, train)


def _notes(run: Run) -> tuple[str, ...]:
    notes = []
    if run.tasks:
        notes.append("several tasks: the curves are those of all together; each task's own are not judged")
    if run.resolved.get("episodes") is not None:
        notes.append("learned from episodes: losses and metrics are means over episodes of few classes")
    if run.status["state"] == "running":
        notes.append("the run is still going on: what follows is about its rows so far")
    return tuple(notes)
