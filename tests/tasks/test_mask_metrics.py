"""mask_metrics.py: intervals and paired changes of rows of counts against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from warmstart.stats import mcnemar_p
from warmstart.tasks import mask_metrics

K = 4


def _rows(num: int = 60, skill: float = 0.7, seed: int = 0) -> np.ndarray:
    """Rows of images of 100 pixels, of which the first `skill` are right; half of them have no class 3."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num):
        targets = rng.integers(3 if index % 2 else K, size=100)
        predicted = np.where(
            np.random.default_rng(index).random(100) < skill, targets, rng.integers(K, size=100)
        )
        hits = np.bincount(targets[targets == predicted], minlength=K)
        parts = hits, np.bincount(predicted, minlength=K), np.bincount(targets, minlength=K)
        rows.append([*np.concatenate(parts), 50.0, 100])
    return np.array(rows, dtype=np.float64)


def _miou(rows: np.ndarray) -> float:
    hits, predicted, wanted = rows[:, : 3 * K].sum(axis=0).reshape(3, K)
    return float(np.mean([h / (p + w - h) for h, p, w in zip(hits, predicted, wanted, strict=True) if p + w]))


def test_the_parts_of_a_row() -> None:
    counts = mask_metrics.counts_of(np.arange(8.0).reshape(1, 8))
    assert [part.tolist() for part in counts] == [[[0, 1]], [[2, 3]], [[4, 5]], [6], [7]]
    with pytest.raises(AssertionError, match="rows of shape"):
        mask_metrics.counts_of(np.zeros((1, 9)))


def test_the_interval_is_a_bootstrap_over_images() -> None:
    rows = _rows()
    low, high = mask_metrics.miou_interval(rows)
    rng = np.random.default_rng(5)
    by_hand = [_miou(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(2000)]
    expected = np.quantile(by_hand, [0.025, 0.975])
    assert low < _miou(rows) < high
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (high - low))
    assert mask_metrics.miou_interval(rows) == (low, high), "seeded"
    assert mask_metrics.miou_interval(rows[:1]) == pytest.approx((_miou(rows[:1]),) * 2)


def test_a_class_of_few_images_is_absent_in_some_resamples() -> None:
    rows = _rows(8, skill=1.0)
    rows[1:, 3::K][:, :3] = 0  # class 3 is in the first image only, and right there
    assert mask_metrics.miou_interval(rows) == (1.0, 1.0)


def test_no_valid_pixel() -> None:
    rows = np.zeros((3, 3 * K + 2))
    assert math.isnan(mask_metrics.miou(rows)) and math.isnan(mask_metrics.fscore_per_image(rows))
    assert all(math.isnan(value) for value in mask_metrics.miou_interval(rows))
    rows[0] = _rows(1)[0]
    assert mask_metrics.miou(rows) == pytest.approx(_miou(rows))
    low, high = mask_metrics.miou_interval(rows)
    assert low == high == pytest.approx(_miou(rows)), "resamples without a valid pixel are left out"


def test_a_paired_change_is_of_the_same_images() -> None:
    before, after = _rows(skill=0.7), _rows(skill=0.75)
    change = mask_metrics.paired(before, after)
    assert change.difference == pytest.approx(_miou(after) - _miou(before))
    own = [(_miou(a[None]), _miou(b[None])) for a, b in zip(before, after, strict=True)]
    higher, lower = sum(b > a for a, b in own), sum(b < a for a, b in own)
    assert (change.higher, change.lower) == (higher, lower) and higher > lower
    assert change.p == mcnemar_p(higher, lower)
    rng = np.random.default_rng(5)
    by_hand = []
    for _ in range(2000):
        drawn = rng.integers(len(before), size=len(before))
        by_hand.append(_miou(after[drawn]) - _miou(before[drawn]))
    expected = tuple(np.quantile(by_hand, [0.025, 0.975]))
    assert (change.low, change.high) == pytest.approx(expected, abs=0.1 * (change.high - change.low))
    unpaired = mask_metrics.miou_interval(after)
    assert change.high - change.low < unpaired[1] - unpaired[0]


def test_the_same_rows_have_not_changed() -> None:
    rows = _rows()
    assert mask_metrics.paired(rows, rows) == (0, 0, 0, 0, 0, 1)
