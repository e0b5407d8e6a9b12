"""How a second model differs from a first on the same samples, as a run records it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LEVEL = 0.05
METRIC_WORDS = {"accuracy": "accuracy", "map": "mAP", "miou": "mIoU"}
_CHANGED = {  # what the exact test counts
    "accuracy": ("fixed", "broken", "McNemar p"),
    "map": ("images with fewer wrong labels", "with more", "sign test p"),
    "miou": ("images with a higher mIoU", "with a lower one", "sign test p"),
}


@dataclass(frozen=True)
class Change:
    """The paired difference of two models in `metric`: positive where the second is better.

    `low` and `high` bound it in 95 % of bootstrap resamples of the samples. `p` is of the exact sign test over the
    samples that were fixed and broken: with one class per image, wrong before and right now (McNemar's test); with
    sets, fewer wrong labels than before; with masks, a higher mIoU of the image.
    """

    metric: str  # accuracy; `map` for sets, `miou` for masks
    difference: float
    low: float
    high: float
    fixed: int
    broken: int
    p: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Change:
        """Of the values that a run recorded among others, where null stands for what is no number."""
        low, high, difference, p = (
            math.nan if record[name] is None else record[name] for name in ("low", "high", "difference", "p")
        )
        return cls(record["metric"], difference, low, high, record["fixed"], record["broken"], p)

    @property
    def direction(self) -> int:
        """1 better, -1 worse, 0 unless the interval and the exact test agree: few changed answers prove little."""
        if self.p < _LEVEL and self.low > 0 and self.fixed > self.broken:
            return 1
        return -1 if self.p < _LEVEL and self.high < 0 and self.fixed < self.broken else 0

    @property
    def change(self) -> str:
        """The difference with its interval, and the samples behind the test, in words."""
        words = _CHANGED[self.metric]
        return (
            f"{METRIC_WORDS[self.metric]} {self.difference:+.4f} (95 % paired interval {self.low:+.4f} to "
            f"{self.high:+.4f}; {self.fixed} {words[0]}, {self.broken} {words[1]}, {words[2]} {self.p:.2g})"
        )
