"""Metrics of several models on the same samples, and on the same bootstrap resamples of them. Imports no torch.

Shapes: M models, N samples, K classes, R resamples. What is returned has R + 1 columns: the first is of the samples
themselves, the others of resamples, the same ones for every model, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmstart import stats
from warmstart.analysis.compare.answers import Answers
from warmstart.tasks import binary, label_metrics, mask_metrics

Array = NDArray[np.float64]

_MAX_CELLS, _MOST, _FEWEST = 20_000_000, 1000, 200  # M x N x R, and R
_LEAST_SCORE = 1e-12  # of a class: scores are float32, and the logarithm of 0 is no number
_TOP = 5

MAIN = {"classification": "accuracy", "multi-label": "map", "segmentation": "miou"}
LOWER_IS_BETTER = ("loss", "ece")
OF_CLASS = {"classification": "recall", "multi-label": "f1", "segmentation": "iou"}


@dataclass(frozen=True)
class Measures:
    """`overall`: metric -> (M, R + 1). `by_class` (M, R + 1, K): recall, F1 of a label, or IoU; NaN where undefined.

    `cost` (M, N) is what one sample has wrong: 1 or 0, the number of wrong labels, or 1 - mIoU of the image.
    """

    overall: dict[str, Array]
    by_class: Array
    support: NDArray[np.int64]  # (K,): samples that have the class
    cost: Array


def metric_names(kind: str, num_classes: int) -> tuple[str, ...]:
    if kind == "multi-label":
        return ("map", "f1", "f1_micro", "exact_match", "loss")
    if kind == "segmentation":
        return ("miou", "fscore", "accuracy", "loss")
    top = ("top5",) if num_classes > _TOP else ()
    positive = ("f1_positive",) if num_classes == 2 else ()
    return ("accuracy", "f1", "balanced_accuracy", *positive, *top, "loss", "ece")


def measure(models: Sequence[Answers], seed: int = 0) -> Measures:
    """All metrics of aligned answers."""
    cells = len(models) * len(models[0].ids)
    num = int(np.clip(_MAX_CELLS // cells, _FEWEST, _MOST))
    return _OF_KIND[models[0].kind](models, num, seed)


def wrong_labels(model: Answers) -> NDArray[np.bool_]:
    """Sets: (N, K), true where a label is given and should not be, or the other way round."""
    assert model.targets is not None
    cuts = np.full(len(model.classes), 0.5) if model.cuts is None else np.array(model.cuts)
    return np.not_equal(model.scores >= cuts, model.targets.astype(bool))


def answers_of(model: Answers) -> NDArray[np.int64]:
    """One class per image: (N,), the class that is answered."""
    return binary.answers_by(model.scores, model.classes, model.decision)


def _weights(num_samples: int, num: int, seed: int) -> Iterator[Array]:
    """(N,): ones, then how often each sample is in each of `num` resamples."""
    rng = np.random.default_rng(seed)
    yield np.ones(num_samples)
    for _ in range(num):
        yield np.bincount(rng.integers(num_samples, size=num_samples), minlength=num_samples).astype(float)


def _of_classes(models: Sequence[Answers], num: int, seed: int) -> Measures:
    first = models[0]
    assert first.targets is not None
    targets, num_classes, num_samples = first.targets.astype(np.int64), len(first.classes), len(first.ids)
    names = metric_names(first.kind, num_classes)
    looks = [_Look.at(model, targets) for model in models]
    overall = {name: np.empty((len(models), num + 1)) for name in names}
    by_class = np.empty((len(models), num + 1, num_classes))
    positive = 1 if first.decision is None else first.classes.index(first.decision.positive)
    for column, weights in enumerate(_weights(num_samples, num, seed)):
        support = np.bincount(targets, weights, num_classes).astype(float)
        for row, look in enumerate(looks):
            recall, f1, others = look.weighted(weights, targets, support)
            by_class[row, column] = recall
            values = {
                "f1": np.nanmean(f1),
                "balanced_accuracy": np.nanmean(recall),
                "f1_positive": f1[positive] if num_classes == 2 else np.nan,
                **others,
            }
            for name in names:
                overall[name][row, column] = values[name]
    cost = np.stack([~look.correct for look in looks]).astype(float)
    return Measures(overall, by_class, np.bincount(targets, minlength=num_classes), cost)


@dataclass(frozen=True)
class _Look:
    """What one model makes of the samples, each (N,), from which every metric is a weighted sum."""

    answers: NDArray[np.int64]
    correct: NDArray[np.bool_]
    loss: Array
    confidence: Array
    bins: NDArray[np.int64]
    likeliest: Array  # 1 where the class of the highest score is right, threshold or not
    in_top: Array

    @classmethod
    def at(cls, model: Answers, targets: NDArray[np.int64]) -> _Look:
        scores, answers = model.scores.astype(np.float64), answers_of(model)
        own = np.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
        confidence = scores.max(axis=1)
        in_top = np.zeros(len(targets))
        if scores.shape[1] > _TOP:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
            in_top = (order == targets[:, None]).any(axis=1).astype(float)
        return cls(
            answers,
            answers == targets,
            -np.log(np.maximum(own, _LEAST_SCORE)),
            confidence,
            stats.confidence_bins(confidence),
            (scores.argmax(axis=1) == targets).astype(float),
            in_top,
        )

    def weighted(
        self, weights: Array, targets: NDArray[np.int64], support: Array
    ) -> tuple[Array, Array, dict[str, float]]:
        """Recall (K,) and F1 (K,), NaN for a class without samples, and the other metrics by name."""
        num_classes, total = len(support), weights.sum()
        hits = np.bincount(targets, weights * self.correct, num_classes)
        predicted = np.bincount(self.answers, weights, num_classes)
        known = np.where(support > 0, support, np.nan)
        gap = np.bincount(self.bins, weights * (self.likeliest - self.confidence))
        others = {
            "accuracy": hits.sum() / total,
            "loss": weights @ self.loss / total,
            "ece": np.abs(gap).sum() / total,
            "top5": weights @ self.in_top / total,
        }
        return hits / known, 2 * hits / (known + predicted), others


def _of_sets(models: Sequence[Answers], num: int, seed: int) -> Measures:
    first = models[0]
    assert first.targets is not None
    targets, num_classes = first.targets, len(first.classes)
    wanted, parts, cost = targets.astype(float), [], []
    for model in models:
        wrong = wrong_labels(model)
        given = np.not_equal(wrong, targets.astype(bool))
        exact = np.clip(model.scores.astype(np.float64), _LEAST_SCORE, 1 - 1e-7)
        loss = -np.where(wanted > 0, np.log(exact), np.log1p(-exact)).mean(axis=1)
        hits = (given & (wanted > 0)).astype(float)
        parts += [
            hits,
            given.astype(float),
            wanted,
            loss[:, None],
            (wrong.sum(axis=1) == 0)[:, None].astype(float),
        ]
        cost.append(wrong.sum(axis=1).astype(float))
    sums = _sums(np.concatenate(parts, axis=1), num, seed).reshape(-1, len(models), 3 * num_classes + 2)
    sums = sums.transpose(1, 0, 2)  # (M, R + 1, 3K + 2)
    hits, given, support, rest = np.split(sums, num_classes * np.arange(1, 4), axis=2)
    f1 = 2 * hits / np.where(support > 0, support + given, np.nan)
    with np.errstate(invalid="ignore"):
        micro = 2 * hits.sum(axis=2) / (support.sum(axis=2) + given.sum(axis=2))
    scores = [model.scores for model in models]
    means = [[label_metrics.mean_average_precision(score, targets)] for score in scores]
    overall = {
        "map": np.concatenate([means, label_metrics.resampled_map(scores, targets, num, seed)], axis=1),
        "f1": mask_metrics.mean_known(f1),
        "f1_micro": micro,
        "exact_match": rest[..., 1] / len(targets),
        "loss": rest[..., 0] / len(targets),
    }
    return Measures(overall, f1, targets.sum(axis=0, dtype=np.int64), np.stack(cost))


def _of_masks(models: Sequence[Answers], num: int, seed: int) -> Measures:
    rows = [model.scores.astype(np.float64) for model in models]
    sums = _sums(np.concatenate(rows, axis=1), num, seed).reshape(-1, len(models), rows[0].shape[1])
    counts = mask_metrics.counts_of(sums.transpose(1, 0, 2))
    ious, valid = mask_metrics.ious(counts), np.where(counts.num_valid > 0, counts.num_valid, np.nan)
    overall = {
        "miou": mask_metrics.mean_known(ious),
        "fscore": mask_metrics.mean_known(mask_metrics.fscores(counts)),
        "accuracy": counts.hits.sum(axis=2) / valid,
        "loss": counts.loss_sum / valid,
    }
    cost = 1 - np.stack([mask_metrics.image_mious(row) for row in rows])
    support = (mask_metrics.counts_of(rows[0]).wanted > 0).sum(axis=0)
    return Measures(overall, ious, support, cost)


def _sums(values: Array, num: int, seed: int) -> Array:
    """(R + 1, columns): of all samples, then of the resamples."""
    return np.concatenate([values.sum(axis=0, keepdims=True), stats.resampled_sums(values, num, seed)])


_OF_KIND: dict[str, Callable[[Sequence[Answers], int, int], Measures]] = {
    "classification": _of_classes,
    "multi-label": _of_sets,
    "segmentation": _of_masks,
}
