"""Multi-label metrics: pure functions of scores and sets, in float64.

Shapes: N samples, K labels, R resamples. `targets` are (N, K), 1 where the sample has the label.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_POSITIVES = 5  # with fewer, a threshold would be that of single images
_MAX_CELLS = 400_000_000  # R x N x K of a bootstrap: a few seconds
_MAX_CELLS_AT_ONCE = 4_000_000


def average_precisions(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """(K,): the mean precision over the positives of each label, in the order of the scores; NaN without any.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores n from the highest, without interpolation (so
    scikit-learn's `average_precision_score` has it).
    """
    once = np.ones((1, len(scores)))
    return np.array(
        [_average_precision(column, hits, once)[0] for column, hits in zip(scores.T, targets.T, strict=True)]
    )


def mean_average_precision(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean over the labels that some sample has; NaN where none has any."""
    values = average_precisions(scores, targets)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def resampled_map(
    scores: list[NDArray[Any]], targets: NDArray[Any], num_resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """(models, R): mAP of each model on the same bootstrap resamples of the samples (so they are paired).

    `scores` holds (N, K) per model. Fewer resamples, down to 200, where N x K is large. A label without
    positives in a resample has no term there; a resample without any positive is left out.
    """
    num_samples, num_labels = targets.shape
    num = int(np.clip(_MAX_CELLS // max(1, num_samples * num_labels * len(scores)), 200, num_resamples))
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_CELLS_AT_ONCE // num_samples)
    shares = np.full(num_samples, 1 / num_samples)
    found = []
    for start in range(0, num, chunk):
        counts = rng.multinomial(num_samples, shares, size=min(chunk, num - start)).astype(np.float64)
        # (models, K, R)
        values = np.array(
            [[_average_precision(s[:, k], targets[:, k], counts) for k in range(num_labels)] for s in scores]
        )
        known = ~np.isnan(values)
        sums, numbers = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
        with np.errstate(invalid="ignore"):
            found.append(sums / numbers)
    result = np.concatenate(found, axis=1)
    return result[:, ~np.isnan(result).any(axis=0)]


def _average_precision(
    scores: NDArray[Any], targets: NDArray[Any], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) for one label: `counts` (R, N) says how often each sample is in each resample."""
    order = np.argsort(-scores, kind="stable")
    ranked = counts[:, order]
    # Equal scores stand or fall together.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(ranked * targets[order], axis=1)[:, ends]
    shown = np.cumsum(ranked, axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(shown > 0, hits / shown, 0)
        return (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1]


def counts_at(
    scores: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(hits, predicted, support), each (K,): a label is predicted where its score reaches its threshold."""
    predicted, wanted = scores >= thresholds, targets.astype(bool)
    hits = (predicted & wanted).sum(axis=0)
    return hits, predicted.sum(axis=0), wanted.sum(axis=0)


def macro_f1(hits: NDArray[np.int64], predicted: NDArray[np.int64], support: NDArray[np.int64]) -> float:
    """Mean of F1 = 2 TP / (2 TP + FP + FN) over the labels that some sample has; NaN where none has any."""
    present = support > 0
    if not present.any():
        return math.nan
    return float(np.mean(2 * hits[present] / (support[present] + predicted[present])))


def micro_f1(hits: NDArray[np.int64], predicted: NDArray[np.int64], support: NDArray[np.int64]) -> float:
    """F1 of all N x K answers together; NaN where nothing is there and nothing is predicted."""
    total = int(support.sum() + predicted.sum())
    return float(2 * hits.sum() / total) if total else math.nan


def best_thresholds(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[float, ...]:
    """Per label, the threshold with the highest F1 on these samples; 0.5 with fewer than 5 positives or negatives.

    Every place between two neighbouring scores is tried. Between them it is 0.5 if that lies there, else
    the middle; of places with equal F1 the one nearest to 0.5 is taken.
    """
    return tuple(
        _best_threshold(column.astype(np.float64), hits)
        for column, hits in zip(scores.T, targets.T, strict=True)
    )


def _best_threshold(scores: NDArray[np.float64], targets: NDArray[Any]) -> float:
    support = int(targets.sum())
    if min(support, len(targets) - support) < FEWEST_POSITIVES:
        return 0.5
    places, hits, predicted = cuts(scores, targets)
    f1 = 2 * hits / (support + predicted)
    best = np.flatnonzero(f1 == f1.max())
    return float(places[best[np.argmin(np.abs(places[best] - 0.5))]])


def cuts(
    scores: NDArray[np.float64], targets: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """(places, hits, predicted) of every threshold that tells some scores (N,) from others, from the highest on.

    Between two neighbouring scores it is 0.5 if that lies there, else the middle. `hits` of the `predicted` samples
    have a target (N,) of 1.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    upper, lower = ranked[ends], np.append(ranked[np.minimum(ends + 1, len(ranked) - 1)][:-1], 0.0)
    places = np.where((lower < 0.5) & (upper >= 0.5), 0.5, (lower + upper) / 2)
    return places, np.cumsum(targets[order], dtype=np.int64)[ends], ends + 1
