"""Classification metrics: pure functions of summed statistics.

Shapes: N samples, K classes. A confusion matrix can be summed over batches and processes, and what
is computed from the sum is the metric of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]

_MAX_CELLS_AT_ONCE = 4_000_000  # 32 MB


def confusion(targets: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> Confusion:
    """(K, K) counts, rows are targets, columns are predictions; both are (N,) class indices."""
    assert targets.shape == predicted.shape and targets.ndim == 1, f"{targets.shape}, {predicted.shape}"
    for name, indices in (("target", targets), ("prediction", predicted)):
        if indices.size:
            low, high = indices.min(), indices.max()
            assert low >= 0 and high < num_classes, f"{name} {low}..{high} with {num_classes} classes"
    cells = targets.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def accuracy(matrix: Confusion) -> float:
    """Share of samples on the diagonal."""
    return float(np.trace(matrix) / matrix.sum())


def balanced_accuracy(matrix: Confusion) -> float:
    """Mean recall over the classes present in the targets (a class without samples has no recall)."""
    support = matrix.sum(axis=1)
    present = support > 0
    return float(np.mean(np.diagonal(matrix)[present] / support[present]))


def macro_f1(matrix: Confusion) -> float:
    """Mean of F1 = 2 TP / (2 TP + FP + FN) over the classes present in the targets.

    A class without targets has no term of its own, whether it is predicted or not; predicting it
    wrongly costs the class that the sample belongs to.
    """
    hits = np.diagonal(matrix)
    support = matrix.sum(axis=1)
    present = support > 0
    predicted = matrix.sum(axis=0)
    return float(np.mean(2 * hits[present] / (support[present] + predicted[present])))


def per_class(matrix: Confusion, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: name, precision, recall, f1, support (number of targets).

    What is undefined is None: precision of a class never predicted, recall and F1 of a class without
    targets. A class with targets that is never predicted has an F1 of 0.
    """
    assert matrix.shape == (len(classes), len(classes)), f"{matrix.shape} for {len(classes)} classes"
    hits = np.diagonal(matrix).tolist()
    supports = matrix.sum(axis=1).tolist()
    predictions = matrix.sum(axis=0).tolist()
    return [
        {
            "name": name,
            "precision": hit / predicted if predicted else None,
            "recall": hit / support if support else None,
            "f1": 2 * hit / (support + predicted) if support else None,
            "support": support,
        }
        for name, hit, support, predicted in zip(classes, hits, supports, predictions, strict=True)
    ]


def averages(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """`macro` and `weighted` (by support) means of precision, recall and F1 over the classes that have targets.

    `rows` are those of `per_class`. The precision of a class never predicted counts as 0. So scikit-learn's
    `classification_report` has them, with these classes as `labels`. Empty where nothing was predicted.
    """
    known = [row for row in rows if row["support"]]
    if not known or any(row["f1"] is None for row in known):
        return {}
    supports = [row["support"] for row in known]
    found: dict[str, dict[str, float]] = {}
    for name, weights in (("macro", None), ("weighted", supports)):
        means = {
            score: float(np.average([row[score] or 0.0 for row in known], weights=weights))
            for score in ("precision", "recall", "f1")
        }
        found[name] = {**means, "support": sum(supports)}
    return found


def f1_intervals(
    matrix: Confusion, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """(low, high) of the `macro` and the `weighted` F1 in 95 % of bootstrap resamples of the samples.

    The matrix of N samples drawn with replacement is a multinomial draw of its cells, so samples are not needed. A
    class without targets in a resample has no term there. Where every sample is right the interval has no width.
    """
    num, num_classes = int(matrix.sum()), len(matrix)
    cells = np.flatnonzero(matrix)
    targets, predicted = np.divmod(cells, num_classes)
    is_hit = targets == predicted
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_CELLS_AT_ONCE // (len(cells) + 3 * num_classes))
    macro, weighted = [], []
    for start in range(0, num_resamples, chunk):
        draws = rng.multinomial(num, matrix.flat[cells] / num, size=min(chunk, num_resamples - start)).T
        hits, support, answers = (np.zeros((num_classes, draws.shape[1])) for _ in range(3))
        hits[targets[is_hit]] = draws[is_hit]
        np.add.at(support, targets, draws)
        np.add.at(answers, predicted, draws)
        present = support > 0
        f1 = np.divide(2 * hits, support + answers, out=np.zeros_like(hits), where=present)
        macro.append(f1.sum(axis=0) / present.sum(axis=0))
        weighted.append((f1 * support).sum(axis=0) / num)
    quantiles = [np.quantile(np.concatenate(values), [0.025, 0.975]) for values in (macro, weighted)]
    return {
        name: (float(q[0]), float(q[1])) for name, q in zip(("macro", "weighted"), quantiles, strict=True)
    }


def top_k_correct(scores: NDArray[Any], targets: NDArray[Any], k: int) -> int:
    """Number of rows of `scores` (N, K) whose target (N,) is among the k highest.

    Ties go to the lower class index, as in argmax, so that k = 1 counts what accuracy counts. A NaN
    ranks above every number, and a target that is NaN is wrong.
    """
    num_classes = scores.shape[1]
    assert 1 <= k <= num_classes, f"top {k} of {num_classes} classes"
    own = np.take_along_axis(scores, targets[:, None].astype(np.int64), axis=1)
    is_above = ~(scores <= own)
    is_above |= (scores == own) & (np.arange(num_classes) < targets[:, None])
    is_correct = (is_above.sum(axis=1) < k) & ~np.isnan(own[:, 0])
    return int(is_correct.sum())
