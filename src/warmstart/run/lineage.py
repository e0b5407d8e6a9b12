"""What became of a run that continues another one, beside the best of its parent. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from warmstart.config.schema import SELECTION_METRICS
from warmstart.run.reader import Run


def verdict(gain: float, min_delta: float = 0.0) -> str:
    """In two words and a number; only a gain above `min_delta` is one."""
    return f"IMPROVED by {gain:.4f}" if gain > min_delta else f"NOT better than the parent ({gain:+.4f})"


def reference_of(lineage: dict[str, Any]) -> str:
    """The parent that a run recorded, as RUN@step or the file of another program."""
    return str(lineage["run"]) if lineage["step"] is None else f"{lineage['run']}@{lineage['step']}"


@dataclass(frozen=True)
class Comparison:
    """The best validation of a child (`value` at `step`) against the bar, which `parent` set at `parent_step`."""

    parent: str
    parent_step: int | None
    metric: str
    bar: float
    value: float
    step: int
    gain: float
    improved: bool

    def text(self) -> str:
        words = verdict(self.gain) if self.improved else f"NOT better than the parent ({self.gain:+.4f})"
        where = self.parent if self.parent_step is None else f"{self.parent}@{self.parent_step}"
        return (
            f"{words}: val {self.metric} {self.value:.4f} at step {self.step}, {self.bar:.4f} in {where}"
            + ("" if self.improved else "; the parent is as it was")
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "text": self.text()}


def compare_with_parent(run: Run) -> Comparison | None:
    """None where the run continues nothing, has no val, or has not validated anything it trained yet."""
    bar = (run.resolved["parent"] or {}).get("bar")
    if bar is None:
        return None
    metric, first = bar["metric"], run.resolved["pace"].get("first_step", 0)
    sign = SELECTION_METRICS[metric]
    rows = [
        row
        for row in run.evals.rows
        if row["split"] == "val" and row["step"] > first and row.get("kind") != "evaluate"
    ]
    rows = [row for row in rows if row.get(metric) is not None and math.isfinite(row[metric])]
    if not rows:
        return None
    best = max(rows, key=lambda row: sign * row[metric])  # the first of equals
    gain = sign * (best[metric] - bar["value"])
    return Comparison(
        parent=bar["run"],
        parent_step=bar["step"],
        metric=metric,
        bar=bar["value"],
        value=best[metric],
        step=best["step"],
        gain=gain,
        improved=gain > run.config["train"]["min_delta"],
    )
