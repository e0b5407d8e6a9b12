"""One row of a compression's table: a model, what it answers on val, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from warmstart.analysis.paired import METRIC_WORDS, Change
from warmstart.methods.compress.cost import BATCHES, Cost


@dataclass(frozen=True)
class Point:
    """`reference` names the weights: RUN, RUN@step or a file. `removed` is the share of the original that was asked
    for.

    `metrics` are of val; `change` is from the original to this model there, paired (None: it is the original).
    """

    name: str
    reference: str
    removed: float
    metric: str
    metrics: dict[str, float]
    change: Change | None
    cost: Cost
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    @property
    def interval(self) -> tuple[float, float]:
        return self.metrics[f"{self.metric}_low"], self.metrics[f"{self.metric}_high"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Point:
        """Numbers that were not finite stand as null in JSON."""
        change = values["change"]
        return cls(
            **{
                **values,
                "metrics": _numbers(values["metrics"]),
                "change": None if change is None else Change(**_numbers(change)),
                "cost": Cost.from_json(values["cost"]),
                "notes": tuple(values["notes"]),
            }
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def header(metric: str) -> tuple[str, ...]:
    times = (f"ms at batch {batch} (original)" for batch in BATCHES)
    word = METRIC_WORDS[metric]
    return ("model", f"val {word}", "95 % interval", "change", "parameters", "MMACs", "MB", *times)


def row(point: Point) -> tuple[Any, ...]:
    """The cells of a table, in the order of `header`."""
    cost, change = point.cost, point.change
    low, high = point.interval
    times = [
        f"{cost.latency[batch].median * 1e3:.2f} ({cost.original[batch].median * 1e3:.2f})"
        for batch in BATCHES
    ]
    dense = cost.num_nonzero / cost.num_parameters
    zeros = f" ({dense:.1%} not 0)" if dense < 0.999 else ""
    return (
        point.name,
        f"{point.value:.4f}",
        f"{low:.4f} to {high:.4f}",
        "-" if change is None else f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})",
        f"{cost.num_parameters:,}{zeros}",
        f"{cost.macs / 1e6:.2f}",
        f"{cost.num_bytes / 1e6:.2f}",
        *times,
    )
