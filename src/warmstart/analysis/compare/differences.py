"""How two models or two recipes differ: intervals by metric and class, the exact test, and what would be enough.

Shapes: N samples, R resamples, K classes. A difference is the second less the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart import stats
from warmstart.analysis.compare.measures import LOWER_IS_BETTER, Measures

LEVEL = 0.05  # of a verdict, before it is divided by how often the samples were used
_RESAMPLES_IN_TAIL = 50


@dataclass(frozen=True)
class Difference:
    """One metric, or one class of it: `low` and `high` bound the difference in all but `level` of the resamples."""

    name: str
    first: float
    second: float
    low: float
    high: float
    support: int | None = None  # of a class

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def sign(self) -> int:
        return -1 if self.name in LOWER_IS_BETTER else 1

    @property
    def gain(self) -> float:
        """The difference, positive where the second is better."""
        return self.sign * self.difference

    @property
    def gains(self) -> tuple[float, float]:
        """(low, high) of the gain."""
        return (self.low, self.high) if self.sign > 0 else (-self.high, -self.low)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True)
class ExactTest:
    """Samples that became better and worse from the first model to the second; p of the sign test (McNemar's)."""

    fixed: int
    broken: int
    p: float

    @classmethod
    def of(cls, cost: NDArray[np.float64]) -> ExactTest:
        """`cost` (2, N): what each model has wrong of each sample."""
        fixed, broken = int((cost[1] < cost[0]).sum()), int((cost[1] > cost[0]).sum())
        return cls(fixed, broken, stats.mcnemar_p(fixed, broken))

    def enough(self, num_samples: int, level: float) -> int | None:
        """About how many samples would tell so large a change, at this level with a power of 80 %; None: no change."""
        found = stats.sample_size(self.fixed / num_samples, self.broken / num_samples, level)
        return None if found is None else max(found, num_samples + 1)


def direction(main: Difference, test: ExactTest, level: float) -> int:
    """1 better, -1 worse; 0 unless interval and exact test agree: on few changed answers the bootstrap is too sure."""
    low, high = main.gains
    if test.p < level and low > 0 and test.fixed > test.broken:
        return 1
    return -1 if test.p < level and high < 0 and test.fixed < test.broken else 0


def differences(found: Measures, level: float) -> list[Difference]:
    """Of two models, by metric. Accuracy, which the verdict of classes rests on, has as many resamples as it needs."""
    result = []
    for name, values in found.overall.items():
        low, high = interval(values[1, 1:] - values[0, 1:], level)
        is_share_of_right = name == "accuracy" and set(np.unique(found.cost)) <= {0.0, 1.0}
        if is_share_of_right:
            num = max(2000, int(2 * _RESAMPLES_IN_TAIL / level))
            low, high = stats.bootstrap_interval(found.cost[0] - found.cost[1], None, num, 1 - level)
        result.append(Difference(name, float(values[0, 0]), float(values[1, 0]), low, high))
    return result


def class_differences(found: Measures, classes: Sequence[str], level: float) -> list[Difference]:
    """Of two models, by class, what has fallen most first; classes without a value are left out."""
    result = []
    for k, name in enumerate(classes):
        first, second = found.by_class[:, 0, k].tolist()
        low, high = interval(found.by_class[1, 1:, k] - found.by_class[0, 1:, k], level)
        if np.isfinite([first, second]).all():
            result.append(Difference(name, first, second, low, high, int(found.support[k])))
    return sorted(result, key=lambda row: row.difference)


def interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """(low, high) between which all but `level` of the values lie; NaN where none is a number."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [level / 2, 1 - level / 2])
    return float(low), float(high)
