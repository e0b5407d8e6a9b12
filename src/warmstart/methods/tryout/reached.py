"""How far a run has come on its own schedule, and what it is worth there, by its rows. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from warmstart.config.schema import SELECTION_METRICS
from warmstart.methods.trials.trial import Row, is_finished, metric_of, validations
from warmstart.run import layout
from warmstart.run.reader import Run


def best_of(rows: Sequence[Row], metric: str) -> tuple[float, int] | None:
    """The best finite value of a metric and the first step that had it; None where no row has one."""
    sign = SELECTION_METRICS[metric]
    found = [(row[metric], row["step"]) for row in rows if row.get(metric) is not None]
    return max(found, key=lambda pair: (sign * pair[0], -pair[1]), default=None)


def total(run: Path) -> int:
    return int(Run(run).resolved["pace"]["total_steps"])


def step_at(run: Path, share: float) -> int:
    return math.ceil(share * total(run))


def has_reached(run: Path, share: float) -> bool:
    """Also a run that stopped early: it has come as far as it wants."""
    if not layout.is_run(run):
        return False
    if is_finished(run):
        return True
    return share < 1 and any(row["step"] >= step_at(run, share) for row in validations(run))


def value_at(run: Path, share: float) -> float | None:
    """The best of what was trained up to the validation that counts for a rung: the first behind it."""
    wanted, rows = step_at(run, share), validations(run)
    end = next((row["step"] for row in rows if row["step"] >= wanted), math.inf)
    best = best_of([row for row in rows if 0 < row["step"] <= end], metric_of(run))
    return None if best is None else best[0]
