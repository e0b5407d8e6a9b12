"""Two models on the same samples: the difference, its interval, and an exact test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.change import METRIC_WORDS as METRIC_WORDS
from warmstart.analysis.change import Change as Change
from warmstart.stats import bootstrap_interval, mcnemar_p
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_metrics import resampled_map
from warmstart.tasks.mask_metrics import paired
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Scored:
    """What a model made of some samples: `scores` as its task gives them, and its metrics there."""

    task: Classification | MultiLabel | Segmentation
    scores: NDArray[Any]
    metrics: dict[str, float]

    def value(self, metric: str) -> float:
        """The metric of the answers that are given: at the threshold, where one is in force."""
        return self.metrics.get(f"{metric}_at_threshold", self.metrics[metric])


def change_between(before: Scored, after: Scored, targets: NDArray[Any]) -> Change:
    """How `after` differs from `before` on samples with these targets; each decides by its own task's thresholds.

    With one class per image, `metrics` have `accuracy_at_threshold` where the task has a threshold.
    """
    task = after.task
    metric = task.metrics[0]
    if isinstance(task, Segmentation):
        found = paired(before.scores, after.scores)
        return Change(metric, found.difference, found.low, found.high, found.higher, found.lower, found.p)
    if isinstance(task, MultiLabel):
        assert isinstance(before.task, MultiLabel), "two models of sets"
        old, new = before.task.num_wrong(before.scores, targets), task.num_wrong(after.scores, targets)
        resampled = resampled_map([before.scores, after.scores], targets)
        low, high = np.quantile(resampled[1] - resampled[0], [0.025, 0.975]).tolist()
    else:
        assert isinstance(before.task, Classification), "two models of one class per image"
        old = (before.task.answers_by(before.scores) != targets).astype(np.int64)
        new = (task.answers_by(after.scores) != targets).astype(np.int64)
        low, high = bootstrap_interval(old - new)
    difference = after.value(metric) - before.value(metric)
    if not np.isfinite(difference):
        low = high = np.nan
    fixed, broken = int((new < old).sum()), int((new > old).sum())
    return Change(metric, difference, low, high, fixed, broken, mcnemar_p(fixed, broken))
