"""Metrics of masks: pure functions of rows of counts, in float64.

Shapes: N images, K classes. A row is what is kept of one image, (3K + 2,): true positives by class, predicted
pixels by class, target pixels by class, sum of cross entropy in nats, number of valid pixels. Ignored pixels
are in none of them. Rows of all images, batches and processes together give the metrics of the whole.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart import stats

_NUM_RESAMPLES = 1000
_MAX_CELLS = 400_000_000  # resamples x images x numbers of a bootstrap: about a tenth of a second

Array = NDArray[np.float64]


class Counts(NamedTuple):
    """The parts of rows: (..., K) and (...)."""

    hits: Array
    predicted: Array
    wanted: Array
    loss_sum: Array
    num_valid: Array


class PairedChange(NamedTuple):
    """What changed between two models on the same images, in mIoU over all of them.

    `low` and `high` bound the difference in 95 % of bootstrap resamples of the images. `higher` and `lower` count
    images by their own mIoU; `p` is of the exact sign test over them.
    """

    difference: float
    low: float
    high: float
    higher: int
    lower: int
    p: float


def counts_of(rows: NDArray[Any]) -> Counts:
    """The parts of rows (..., 3K + 2)."""
    num_classes = (rows.shape[-1] - 2) // 3
    assert num_classes > 0 and rows.shape[-1] == 3 * num_classes + 2, f"rows of shape {rows.shape}"
    exact = np.asarray(rows, dtype=np.float64)
    hits, predicted, wanted, rest = np.split(exact, num_classes * np.arange(1, 4), axis=-1)
    return Counts(hits, predicted, wanted, rest[..., 0], rest[..., 1])


def ious(counts: Counts) -> Array:
    """(..., K): TP / (TP + FP + FN); NaN for a class that is absent, in targets and predictions."""
    return _ratio(counts.hits, counts.predicted + counts.wanted - counts.hits)


def fscores(counts: Counts) -> Array:
    """(..., K): 2 TP / (2 TP + FP + FN); NaN for a class that is absent, in targets and predictions."""
    return _ratio(2 * counts.hits, counts.predicted + counts.wanted)


def mean_known(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where everything is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def miou(rows: NDArray[Any]) -> float:
    """Mean IoU over the classes that are not absent, of all images together."""
    return float(mean_known(ious(counts_of(rows.sum(axis=0)))))


def image_mious(rows: NDArray[Any]) -> Array:
    """(N,): mean IoU of each image, over the classes that are not absent in it; NaN without a valid pixel."""
    return mean_known(ious(counts_of(rows)))


def fscore_per_image(rows: NDArray[Any]) -> float:
    """Mean over images of the mean F over the classes present in the image's target."""
    counts = counts_of(rows)
    present = np.where(counts.wanted > 0, fscores(counts), np.nan)
    return float(mean_known(mean_known(present)))


def fscore_per_batch(rows: NDArray[Any], batch_size: int) -> float:
    """Mean over batches of the mean F over the classes present in the batch's target.

    Document 002's "F-Score", as its program computes it: in each batch of the validation loader the pixels of all
    images are counted together; F = 2 P R / (P + R) = 2 TP / (2 TP + FP + FN) of each class in the batch's ground
    truth (one that is only predicted has no term), their mean, and the mean of that over the batches. A batch is
    `batch_size` rows that follow each other, the last one what is left, with the weight of a full one; a batch
    without a valid pixel has no term. With one image per batch it is `fscore_per_image`.
    """
    starts = np.arange(0, len(rows), batch_size)
    return fscore_per_image(np.add.reduceat(np.asarray(rows, dtype=np.float64), starts, axis=0))


def miou_interval(rows: NDArray[Any]) -> tuple[float, float]:
    """95 % interval of mIoU by a percentile bootstrap over images: see `stats.bootstrap_interval`.

    A class that a resample does not hold is absent there.
    """
    (values,) = _resampled_mious([rows])
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (math.nan, math.nan)
    return float(low), float(high)


def paired(before: NDArray[Any], after: NDArray[Any]) -> PairedChange:
    """The change from one model's rows to another's, both (N, 3K + 2) of the same images in the same order."""
    assert before.shape == after.shape, f"{before.shape}, {after.shape}"
    first, second = _resampled_mious([before, after])
    low, high = np.quantile(second - first, [0.025, 0.975]) if len(first) else (math.nan, math.nan)
    one, other = image_mious(before), image_mious(after)
    higher, lower = int((other > one).sum()), int((other < one).sum())
    p = stats.mcnemar_p(higher, lower)
    return PairedChange(miou(after) - miou(before), float(low), float(high), higher, lower, p)


def _resampled_mious(models: list[NDArray[Any]]) -> Array:
    """(models, R): mIoU of each on the same resamples; those without a valid pixel are left out."""
    parts = []
    for rows in models:
        counts = counts_of(rows)
        parts += [counts.hits, counts.predicted + counts.wanted - counts.hits]
    values = np.concatenate(parts, axis=1)  # (N, models x 2K)
    num = int(np.clip(_MAX_CELLS // max(1, values.size), 200, _NUM_RESAMPLES))
    sums = stats.resampled_sums(values, num).reshape(num, len(models), 2, -1)
    found = mean_known(_ratio(sums[:, :, 0], sums[:, :, 1]))
    return found[~np.isnan(found).any(axis=1)].T


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Array:
    """NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore"):
        return np.where(below > 0, above, np.nan) / np.where(below > 0, below, 1)
