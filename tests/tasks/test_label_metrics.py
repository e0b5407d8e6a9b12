"""label_metrics.py against scikit-learn and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from warmstart.tasks import label_metrics


def _case(
    num: int = 200, num_labels: int = 4, seed: int = 0, levels: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0, 1] that know something about the targets; with `levels`, many of them are equal."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num, num_labels)) < np.linspace(0.1, 0.6, num_labels)).astype(np.uint8)
    scores = np.clip(0.3 * targets + 0.7 * rng.random(targets.shape), 0, 1)
    return (np.round(scores * levels) / levels if levels else scores), targets


@pytest.mark.parametrize("levels", [0, 1, 7])
def test_average_precision_is_scikit_learns(levels: int) -> None:
    scores, targets = _case(levels=levels)
    found = label_metrics.average_precisions(scores, targets)
    expected = [average_precision_score(targets[:, k], scores[:, k]) for k in range(4)]
    assert found == pytest.approx(expected, abs=1e-14)
    assert label_metrics.mean_average_precision(scores, targets) == pytest.approx(
        average_precision_score(targets, scores, average="macro"), abs=1e-14
    )


def test_a_label_that_no_sample_has_is_left_out() -> None:
    scores, targets = _case()
    targets[:, 1] = 0
    assert math.isnan(label_metrics.average_precisions(scores, targets)[1])
    rest = [0, 2, 3]
    assert label_metrics.mean_average_precision(scores, targets) == pytest.approx(
        label_metrics.mean_average_precision(scores[:, rest], targets[:, rest])
    )
    assert math.isnan(label_metrics.mean_average_precision(scores, np.zeros_like(targets)))


def test_a_resample_is_a_weighting_of_the_samples() -> None:
    scores, targets = _case(num=60, levels=9)
    counts = np.random.default_rng(1).integers(0, 4, (5, 60)).astype(np.float64)
    found = label_metrics._average_precision(scores[:, 2], targets[:, 2], counts)
    expected = [average_precision_score(targets[:, 2], scores[:, 2], sample_weight=row) for row in counts]
    assert found == pytest.approx(expected, abs=1e-12)


def test_resampled_map_surrounds_the_map_and_pairs_the_models() -> None:
    scores, targets = _case(num=150)
    values = label_metrics.resampled_map([scores, scores * 0.5, 1 - scores], targets, 300)
    assert values.shape == (3, 300)
    assert (values[0] == values[1]).all() and (values[0] > values[2]).all()
    low, high = np.quantile(values[0], [0.025, 0.975])
    assert low < label_metrics.mean_average_precision(scores, targets) < high
    assert (label_metrics.resampled_map([scores], targets, 300)[0] == values[0]).all()
    nothing = label_metrics.resampled_map([scores], np.zeros_like(targets), 300)
    assert nothing.shape == (1, 0)


def test_f1_is_scikit_learns() -> None:
    scores, targets = _case()
    thresholds = np.array([0.2, 0.5, 0.5, 0.9])
    counts = label_metrics.counts_at(scores, targets, thresholds)
    predicted = scores >= thresholds
    assert label_metrics.macro_f1(*counts) == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert label_metrics.micro_f1(*counts) == pytest.approx(f1_score(targets, predicted, average="micro"))
    none = label_metrics.counts_at(scores, np.zeros_like(targets), np.full(4, 2.0))
    assert math.isnan(label_metrics.macro_f1(*none)) and math.isnan(label_metrics.micro_f1(*none))


@pytest.mark.parametrize("levels", [0, 6])
def test_no_threshold_is_better_than_the_chosen_one(levels: int) -> None:
    scores, targets = _case(levels=levels)
    for k, threshold in enumerate(label_metrics.best_thresholds(scores, targets)):
        found = f1_score(targets[:, k], scores[:, k] >= threshold)
        tried = np.linspace(0, 1, 2001)
        predicted = scores[:, k] >= tried[:, None]
        f1 = (
            2 * (predicted & (targets[:, k] == 1)).sum(axis=1) / (predicted.sum(axis=1) + targets[:, k].sum())
        )
        assert found >= f1.max() - 1e-12
        nearest = np.abs(tried[f1 > found - 1e-12] - 0.5).min()
        assert abs(threshold - 0.5) <= nearest + (0.5 / levels if levels else 0.05)


def test_ties_go_to_one_half_and_few_positives_take_it() -> None:
    apart = np.concatenate([np.full(10, 0.9), np.full(10, 0.1)])[:, None]
    targets = np.repeat([1, 0], 10)[:, None].astype(np.uint8)
    assert label_metrics.best_thresholds(apart, targets) == (0.5,)
    assert label_metrics.best_thresholds(apart * 0.5, targets) == (pytest.approx(0.25),)
    few = targets.copy()
    few[4:] = 0
    assert label_metrics.best_thresholds(apart * 0.5, few) == (0.5,)
    assert label_metrics.best_thresholds(apart * 0.5, 1 - few) == (0.5,)
