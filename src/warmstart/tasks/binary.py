"""Two classes, one of them positive: metrics of that class, and the threshold from which it is the answer.

Shapes: N samples. `scores` are the probabilities of the positive class, `wanted` is true where it is the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.config.threshold import ThresholdRule
from warmstart.records import Decision
from warmstart.tasks.label_metrics import FEWEST_POSITIVES, best_thresholds, cuts

METRICS = ("f1_positive", "precision_positive", "recall_positive")
FEW = 30  # of either class: a threshold chosen on fewer rests on single images


def positive_metrics(answers: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """F1, precision and recall of the positive class; 0 where nothing is positive, as the F1 of no hit is."""
    hits = int((answers & wanted).sum())
    predicted, support = int(answers.sum()), int(wanted.sum())
    values = (
        2 * hits / (predicted + support) if predicted + support else 0.0,
        hits / predicted if predicted else 0.0,
        hits / support if support else 0.0,
    )
    return dict(zip(METRICS, values, strict=True))


def answers_by(
    scores: NDArray[Any], classes: Sequence[str], decision: Decision | None = None
) -> NDArray[np.int64]:
    """(N,): the class with the highest score of (N, K); of two, the positive one from a decision's threshold on."""
    if decision is None or decision.threshold is None:
        return scores.argmax(axis=1)
    positive = classes.index(decision.positive)
    # A threshold lies between two float32: as one of them it could fall onto the lower score.
    reached = scores[:, positive].astype(np.float64) >= decision.threshold
    return np.where(reached, positive, 1 - positive)


def choose_threshold(rule: ThresholdRule, scores: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The threshold by `rule` (not `fixed`); 0.5 where fewer than 5 samples are positive, or negative.

    Every place between two neighbouring scores is tried, for `cost` also the ones where every answer is the same.
    Of equal places the one nearest to 0.5 is taken, for `recall` the highest.
    """
    assert rule.kind != "fixed", "nothing is to be chosen"
    support = int(wanted.sum())
    if min(support, len(wanted) - support) < FEWEST_POSITIVES or np.isnan(scores).any():
        return 0.5
    if rule.kind == "f1":
        return best_thresholds(scores[:, None], wanted[:, None])[0]
    places, hits, predicted = cuts(scores.astype(np.float64), wanted)
    if rule.kind == "recall":
        # The first place that reaches it has the fewest false alarms; 1e-9: .95 of 20 is 19.
        return float(places[np.argmax(hits >= rule.value * support - 1e-9)])
    never = np.nextafter(np.maximum(scores.max(), 0.5), 2.0)
    places, hits, predicted = np.append(places, never), np.append(hits, 0), np.append(predicted, 0)
    cost = rule.miss * (support - hits) + rule.alarm * (predicted - hits)
    best = np.flatnonzero(cost <= cost.min() * (1 + 1e-12))
    return float(places[best[np.argmin(np.abs(places[best] - 0.5))]])
