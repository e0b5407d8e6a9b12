"""Is the second recipe better than the first? Several seeds of each, and both as chance: the seeds and the samples.

Shapes: S seeds of a recipe, N samples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from warmstart import stats
from warmstart.analysis.compare import require
from warmstart.analysis.compare.answers import Answers, align
from warmstart.analysis.compare.differences import LEVEL, Difference, interval
from warmstart.analysis.compare.looks import Looks, count_pair
from warmstart.analysis.compare.measures import MAIN, Measures, measure, metric_names
from warmstart.analysis.compare.sides import Side, told_data
from warmstart.analysis.compare.telling import check_lines, metric_table, percent
from warmstart.console import table
from warmstart.errors import UserError, listing
from warmstart.shown import Shown

if TYPE_CHECKING:
    from warmstart.config.schema import DataConfig

FEWEST_SEEDS = 3
_POWER = 0.8
_NUM_DRAWS = 4000


@dataclass(frozen=True)
class RecipeComparison(Shown):
    """Two recipes by S seeds each, on N samples. `p` is of Welch's t-test over the seeds' main metric."""

    labels: tuple[tuple[str, ...], tuple[str, ...]]
    split: str
    kind: str
    num_samples: int
    values: tuple[tuple[float, ...], tuple[float, ...]]  # the main metric of each seed
    overall: list[Difference]
    by_class: list[Difference]
    p: float
    level: float
    looks: Looks
    enough: int | None  # seeds a side that would tell
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    checks: list[require.Check] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Difference:
        return next(row for row in self.overall if row.name == MAIN[self.kind])

    @property
    def direction(self) -> int:
        """1 better, -1 worse; 0 unless the interval over seeds and samples and the t-test over seeds agree."""
        low, high = self.main.gains
        if self.p >= self.level:
            return 0
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        numbers = " and ".join(str(len(values)) for values in self.values)
        if self.direction:
            return f"recipe B is {'better' if self.direction > 0 else 'worse'} than recipe A on {self.split}"
        more = (
            "no number of seeds would tell" if self.enough is None else f"about {self.enough} a side would do"
        )
        return (
            f"which recipe is better cannot be told with {numbers} seeds and {self.num_samples} samples ({more}, "
            "if the difference is what it looks like here)"
        )

    def text(self) -> str:
        row, means = self.main, [stats.spread(values) for values in self.values]
        lines = [
            f"{self.verdict}: {row.name} {row.first:.4f} -> {row.second:.4f}, {row.difference:+.4f} "
            f"({percent(self.level)} interval over seeds and samples {row.low:+.4f} to {row.high:+.4f}; "
            f"Welch's t over the seeds, p {self.p:.2g})",
            "This is about what these settings give with other seeds and images, not about one of the models.",
            f"{self.looks.text(LEVEL)}.",
            *(f"note: {note}" for note in self.notes),
            *check_lines(self.checks),
            "",
        ]
        rows: list[tuple[str, str, Any]] = [
            (name, run, value)
            for name, runs, values in zip("AB", self.labels, self.values, strict=True)
            for run, value in zip(runs, values, strict=True)
        ]
        rows += [
            (name, "mean and deviation", f"{mean:.4f} ± {deviation:.4f}")
            for name, (mean, deviation) in zip("AB", means, strict=True)
        ]
        lines += [
            table("", ("recipe", "seed", row.name), rows, left=2),
            "",
            metric_table(self.overall, self.level),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "question": "recipes",
            "verdict": self.verdict,
            "direction": self.direction,
            "recipes": [list(labels) for labels in self.labels],
            "values": [list(values) for values in self.values],
            "split": self.split,
            "data": self.data,
            "task": self.kind,
            "num_samples": self.num_samples,
            "metric": self.main.name,
            "p": self.p,
            "level": self.level,
            "looks": self.looks.to_json(),
            "enough_seeds": self.enough,
            "metrics": [row.to_json() for row in self.overall],
            "per_class": [row.to_json() for row in self.by_class],
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "notes": list(self.notes),
        }


def check_seeds(recipes: Sequence[Sequence[Side]]) -> list[str]:
    """Notes about runs of one recipe that differ in more than their seed.

    Raises:
        UserError: fewer than three runs a side, no runs, or one seed twice.
    """
    notes = []
    for name, sides in zip("AB", recipes, strict=True):
        labels = [side.label for side in sides]
        if len(set(labels)) < FEWEST_SEEDS:
            raise UserError(
                f"recipe {name} has {len(set(labels))} runs: {listing(labels)}",
                f"at least {FEWEST_SEEDS} seeds a side: one run says nothing about the next one",
                "run it again with --seed 1, --seed 2; `warmstart compare A B` compares two models",
            )
        runs = [side.run for side in sides if side.run is not None]
        if len(runs) < len(sides):
            raise UserError(f"recipe {name} is not made of runs: {listing(labels)}", "run directories")
        seeds = [run.resolved["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"recipe {name} has runs with one seed: {listing(seeds)}",
                "runs that differ in their seed",
                "the same seed again gives the same model, and says nothing about chance",
            )
        for what, of in _FACTS.items():
            found = {str(of(run.resolved)) for run in runs}
            if len(found) > 1:
                notes.append(
                    f"the runs of recipe {name} differ in more than their seed: {what} {listing(sorted(found))}"
                )
    return notes


_FACTS = {
    "model": lambda resolved: resolved["model"]["name"],
    "lr": lambda resolved: resolved["lr"],
    "steps": lambda resolved: resolved["pace"]["total_steps"],
    "data": lambda resolved: resolved["data"]["fingerprint"],
}


def compare_recipes(
    recipes: tuple[Sequence[Answers], Sequence[Answers]],
    split: str,
    fingerprint: str,
    requirements: Sequence[require.Requirement] = (),
    notes: Sequence[str] = (),
    data: DataConfig | None = None,
) -> RecipeComparison:
    """Compare the second recipe with the first, by the answers of their seeds on the same split of their data, or of
    `data`."""
    num = len(recipes[0])
    models, num_left_out = align([*recipes[0], *recipes[1]])
    require.check_metrics(requirements, metric_names(models[0].kind, len(models[0].classes)))
    found, main = measure(models), MAIN[models[0].kind]
    looks = count_pair([model.side for model in models], split, fingerprint)
    level = LEVEL / looks.num_chances
    values = found.overall[main][:num, 0], found.overall[main][num:, 0]
    overall = [_difference(name, rows, num, level) for name, rows in found.overall.items()]
    by_class = _by_class(found, models[0].classes, num)
    told = [note for model in models for note in model.side.notes]
    told += [f"{num_left_out} samples that not all were measured on are left out"] if num_left_out else []
    labels = [tuple(model.side.label for model in part) for part in (models[:num], models[num:])]
    return RecipeComparison(
        labels=(labels[0], labels[1]),
        split=split,
        kind=models[0].kind,
        num_samples=len(models[0].ids),
        values=(tuple(values[0].tolist()), tuple(values[1].tolist())),
        overall=overall,
        by_class=by_class,
        p=stats.welch_p(*values),
        level=level,
        looks=looks,
        enough=_enough(*values, level),
        data=told_data([model.side for model in models], data, fingerprint),
        checks=require.check(requirements, overall, by_class),
        notes=(*told, *notes),
    )


def _difference(
    name: str, values: NDArray[np.float64], num: int, level: float, support: int | None = None
) -> Difference:
    """`values` are (2 S, R + 1): a metric of each seed, on the samples and on resamples."""
    low, high = interval(hierarchical(values[:num, 1:], values[num:, 1:]), level)
    return Difference(name, float(values[:num, 0].mean()), float(values[num:, 0].mean()), low, high, support)


def _by_class(found: Measures, classes: Sequence[str], num: int) -> list[Difference]:
    rows = [
        _difference(name, found.by_class[..., k], num, LEVEL / len(classes), int(found.support[k]))
        for k, name in enumerate(classes)
        if np.isfinite(found.by_class[:, 0, k]).all()
    ]
    return sorted(rows, key=lambda row: row.difference)


def hierarchical(
    first: NDArray[np.float64], second: NDArray[np.float64], num: int = _NUM_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """(num,) differences of the recipes' means, with seeds and samples drawn again (Davison & Hinkley 1997, 3.8).

    `first` (S, R) and `second` (T, R) are a metric of each seed on the same resamples of the samples. In each draw one
    resample is taken, and in it the seeds of each recipe are drawn with replacement. S values drawn from S spread by
    sqrt((S - 1) / S) too little, which counts where S is 3: drawn means are moved away from their own by the inverse.
    """
    rng = np.random.default_rng(seed)
    columns = rng.integers(first.shape[1], size=num)
    means = []
    for values in (first, second):
        taken, size = values[:, columns], len(values)
        drawn = np.take_along_axis(taken, rng.integers(size, size=(size, num)), axis=0).mean(axis=0)
        own = taken.mean(axis=0)
        means.append(own + (drawn - own) * math.sqrt(size / (size - 1)))
    return np.asarray(means[1] - means[0])


def _enough(first: NDArray[np.float64], second: NDArray[np.float64], level: float) -> int | None:
    """Seeds a side for a power of 80 %: (z_level + z_power)^2 (s_A^2 + s_B^2) / d^2; None without a difference."""
    difference = float(second.mean() - first.mean())
    if difference == 0:
        return None
    z = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(_POWER)
    variance = float(first.var(ddof=1) + second.var(ddof=1))
    return max(math.ceil(z**2 * variance / difference**2), max(len(first), len(second)) + 1)
