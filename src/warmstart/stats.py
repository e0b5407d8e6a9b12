"""Intervals, calibration and spread: pure functions of numpy arrays.

Shapes: N samples, K values per sample, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_MAX_VALUES_AT_ONCE = 4_000_000  # about 50 MB for the indices and the resampled values
_MAX_DISTINCT_VALUES = 16  # up to here counts are resampled instead of samples


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of a percentile bootstrap over samples (Efron & Tibshirani 1993, chapter 13).

    `values` is (N,), or (N, K) where a sample contributes several numbers. `statistic` reduces axis 0
    and keeps the axis of resamples, so (N, R) or (N, R, K) must become (R,), for example
    `lambda v: v[..., 0].sum(0) / v[..., 1].sum(0)`. Without one it is the mean of (N,) values.

    An interval of samples that all agree has no width, whatever N: the bootstrap cannot see what
    was never observed.
    """
    samples = np.asarray(values, dtype=np.float64)
    assert samples.ndim in (1, 2) and len(samples), f"no interval of values of shape {samples.shape}"
    assert 0 < level < 1 and num_resamples > 0, f"level {level}, {num_resamples} resamples"
    rng = np.random.default_rng(seed)
    if statistic is None:
        assert samples.ndim == 1, "values of shape (N, K) need a statistic that gives one number"
        results = _resampled_means(samples, num_resamples, rng)
    else:
        results = _resampled(samples, statistic, num_resamples, rng)
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy_interval(correct: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share of right answers: bootstrap, and exact where every answer agrees.

    The bootstrap of N answers that are all right has no width; the exact bound of Clopper and Pearson
    (1934) is then .025 ** (1 / N).
    """
    values = np.asarray(correct, dtype=np.float64)
    bound = float(0.025 ** (1 / len(values)))
    if values.min() == 1:
        return bound, 1.0
    if values.max() == 0:
        return 0.0, 1 - bound
    return bootstrap_interval(values, seed=seed)


def mcnemar_p(num_only_first: int, num_only_second: int) -> float:
    """Two-sided exact p of McNemar's test (1947): how likely so uneven a split of the changed answers is by chance.

    Of the samples that one of two models answers right and the other wrong, half would fall to each
    side if they were equally good: a binomial test with p = 1/2.
    """
    changed, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**changed)


def _resampled_means(samples: NDArray[np.float64], num_resamples: int, rng: np.random.Generator) -> NDArray:
    """(R,) means. Few distinct values (right or wrong, better or equal or worse) need only their counts.

    The counts of distinct values in N draws with replacement are multinomial (binomial for two), so
    this is the same distribution for a cost that does not grow with N.
    """
    distinct, counts = np.unique(samples, return_counts=True)
    if len(distinct) <= _MAX_DISTINCT_VALUES:
        draws = rng.multinomial(len(samples), counts / len(samples), size=num_resamples)
        return (draws / len(samples)) @ distinct
    return _resampled(samples, lambda resampled: resampled.mean(axis=0), num_resamples, rng)


def _resampled(
    samples: NDArray[np.float64], statistic: Statistic, num_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(R,) values of `statistic`, in chunks of resamples so that memory does not grow with R x N."""
    chunk = max(1, _MAX_VALUES_AT_ONCE // samples.size)
    results = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        indices = rng.integers(len(samples), size=(size, len(samples)), dtype=np.int32)
        result = np.asarray(statistic(samples[indices.T]), dtype=np.float64)
        assert result.shape == (size,), f"the statistic gave {result.shape}, one number per resample was due"
        results.append(result)
    return np.concatenate(results)


def resampled_sums(values: NDArray[np.float64], num_resamples: int, seed: int = 0) -> NDArray[np.float64]:
    """(R, K): the sums of (N, K) values over bootstrap resamples of the samples.

    For statistics of sums (ratios of counts), whose resamples need no copy of the values: how often each sample
    was drawn is a matrix (R, N), and the sums are one product.
    """
    num_samples = len(values)
    assert num_samples and values.ndim == 2, f"no resamples of values of shape {values.shape}"
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_VALUES_AT_ONCE // num_samples)
    results = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        indices = rng.integers(num_samples, size=(size, num_samples))
        indices += num_samples * np.arange(size)[:, None]
        drawn = np.bincount(indices.ravel(), minlength=size * num_samples).reshape(size, num_samples)
        results.append(drawn.astype(np.float64) @ values)
    return np.concatenate(results)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy, in [0, 1] (Guo et al. 2017, eq. 3).

    `confidence` (N,) is the probability of the predicted class, `correct` (N,) is 1 where it was right.
    """
    count, confidence_sum, correct_sum = calibration_bins(confidence, correct, num_bins)
    return float(np.abs(correct_sum - confidence_sum).sum() / count.sum())


def calibration_bins(
    confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Per bin ((m - 1) / M, m / M], each (M,): number of samples, sum of confidence, number correct."""
    confidences = np.asarray(confidence, dtype=np.float64)
    hits = np.asarray(correct, dtype=np.float64)
    assert confidences.ndim == 1 and confidences.shape == hits.shape, f"{confidences.shape}, {hits.shape}"
    assert len(confidences), "no calibration of no samples"
    bins = confidence_bins(confidences, num_bins)
    return (
        np.bincount(bins, minlength=num_bins),
        np.bincount(bins, weights=confidences, minlength=num_bins),
        np.bincount(bins, weights=hits, minlength=num_bins),
    )


def confidence_bins(confidence: ArrayLike, num_bins: int = 15) -> NDArray[np.int64]:
    """(N,): which bin ((m - 1) / M, m / M], counted from 0, each confidence lies in."""
    edges = np.linspace(0, 1, num_bins + 1)
    # Rounding may leave a probability a little outside [0, 1]; a NaN lands in the last bin and stays NaN.
    return np.clip(np.searchsorted(edges, np.asarray(confidence), side="left") - 1, 0, num_bins - 1)


def spread(values: ArrayLike) -> tuple[float, float]:
    """(mean, standard deviation with ddof 1) of one number per seed; one seed has a deviation of NaN."""
    numbers = np.asarray(values, dtype=np.float64)
    assert numbers.ndim == 1 and len(numbers), f"no spread of values of shape {numbers.shape}"
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")
    return float(numbers.mean()), deviation


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % interval of the mean of (N,) values, N > 1: mean +- 1.96 standard deviations (ddof 1) / sqrt(N)."""
    mean, deviation = spread(values)
    half = 1.96 * deviation / math.sqrt(np.size(values))
    return mean - half, mean + half


def sample_size(better: float, worse: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """How many samples McNemar's test needs to see a change as large as this one; None without a difference.

    `better` and `worse` are shares of the samples that change for the better and for the worse:
    n = (z_level sqrt(better + worse) + z_power sqrt(better + worse - d^2))^2 / d^2, d = better - worse
    (Miettinen 1968, Biometrics 24:339; Connor 1987, Biometrics 43:207). A two-sided test at `level`.
    """
    changed, difference = better + worse, better - worse
    if difference == 0:
        return None
    z_level, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)
    root = z_level * math.sqrt(changed) + z_power * math.sqrt(max(0.0, changed - difference**2))
    return math.ceil((root / difference) ** 2)


def welch_p(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p of Welch's t-test (1947) for the means of (N,) and (M,) values, N, M > 1.

    With Welch's degrees of freedom v and x = arctan(t / sqrt(v)), Student's distribution has the density
    cos(x)^(v - 1) up to a factor; both integrals are by Simpson's rule. Without any spread it is 1, or 0 where the
    means differ.
    """
    (mean, deviation), (other, other_deviation) = spread(first), spread(second)
    parts = deviation**2 / np.size(first), other_deviation**2 / np.size(second)
    if sum(parts) == 0:
        return 1.0 if mean == other else 0.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (np.size(first) - 1) + parts[1] ** 2 / (np.size(second) - 1))
    start = math.atan(abs(mean - other) / math.sqrt(sum(parts)) / math.sqrt(freedom))
    return _cosine_integral(start, freedom - 1) / _cosine_integral(0.0, freedom - 1)


def _cosine_integral(start: float, power: float, num: int = 4001) -> float:
    """The integral of cos(x)^power from `start` to pi / 2, power >= 0."""
    places = np.linspace(start, math.pi / 2, num)
    values = np.clip(np.cos(places), 0, None) ** power
    return float(
        (values[0] + values[-1] + 4 * values[1::2].sum() + 2 * values[2:-1:2].sum())
        * (places[1] - places[0])
        / 3
    )
