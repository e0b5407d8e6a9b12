"""stats.py: against closed forms, and against slow loops that say the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from warmstart import stats


def test_interval_of_an_accuracy_covers_what_the_normal_approximation_says():
    correct = np.arange(2000) < 1600
    low, high = stats.bootstrap_interval(correct, num_resamples=20_000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert low == pytest.approx(0.8 - half, abs=1e-3)
    assert high == pytest.approx(0.8 + half, abs=1e-3)


def test_resampled_counts_and_resampled_samples_have_one_distribution():
    values = np.repeat([-1.0, 0.0, 1.0], [30, 200, 70])
    by_counts = stats.bootstrap_interval(values, num_resamples=20_000)
    by_samples = stats.bootstrap_interval(values, lambda v: v.mean(axis=0), num_resamples=20_000, seed=1)
    assert by_counts == pytest.approx(by_samples, abs=0.004)


def test_interval_is_the_same_for_any_chunk_and_another_for_another_seed(monkeypatch):
    values = np.random.default_rng(3).normal(size=101)
    whole = stats.bootstrap_interval(values)
    monkeypatch.setattr(stats, "_MAX_VALUES_AT_ONCE", 1000)
    assert stats.bootstrap_interval(values) == whole
    assert stats.bootstrap_interval(values, seed=1) != whole


def test_ratio_of_two_sums_equals_a_loop_over_resamples():
    pairs = np.random.default_rng(0).uniform(1, 2, size=(60, 2))
    low, high = stats.bootstrap_interval(
        pairs, lambda v: v[..., 0].sum(0) / v[..., 1].sum(0), num_resamples=300
    )
    rng = np.random.default_rng(0)
    rows = rng.integers(60, size=(300, 60), dtype=np.int32)
    ratios = [pairs[row, 0].sum() / pairs[row, 1].sum() for row in rows]
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-12)


def test_interval_covers_the_truth_as_often_as_it_claims():
    rng = np.random.default_rng(5)
    intervals = [
        stats.bootstrap_interval(rng.random(400) < 0.7, num_resamples=400, seed=s) for s in range(300)
    ]
    share = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.91 <= share <= 0.98


def test_interval_of_agreeing_samples_has_no_width():
    assert stats.bootstrap_interval([1, 1, 1]) == (1.0, 1.0)


def test_interval_refuses_what_has_none():
    with pytest.raises(AssertionError, match="shape \\(0,\\)"):
        stats.bootstrap_interval([])
    with pytest.raises(AssertionError, match="need a statistic"):
        stats.bootstrap_interval(np.ones((4, 2)))
    with pytest.raises(AssertionError, match="one number per resample"):
        stats.bootstrap_interval(np.ones((4, 2)), lambda v: v.mean(axis=0))


def test_calibration_error_by_hand():
    # Two bins: (0, .5] holds .4 (wrong) and .5 (right), (.5, 1] holds .9 (right).
    assert stats.expected_calibration_error([0.4, 0.5, 0.9], [0, 1, 1], num_bins=2) == pytest.approx(
        2 / 3 * abs(0.5 - 0.45) + 1 / 3 * abs(1 - 0.9)
    )


def test_calibration_error_equals_a_loop_over_bins():
    rng = np.random.default_rng(1)
    for num_bins in (1, 7, 15):
        confidence = rng.random(500)
        correct = rng.random(500) < confidence**2
        expected = 0.0
        for index in range(num_bins):
            inside = (confidence > index / num_bins) & (confidence <= (index + 1) / num_bins)
            if inside.any():
                expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        assert stats.expected_calibration_error(confidence, correct, num_bins) == pytest.approx(
            expected, abs=1e-12
        )


def test_calibration_of_the_edges_and_of_nan():
    counts, _, _ = stats.calibration_bins([0.0, 1.0, 1.0000001], [0, 1, 1], num_bins=4)
    assert counts.tolist() == [1, 0, 0, 2]
    assert math.isnan(stats.expected_calibration_error([0.5, math.nan], [1, 0]))


def test_spread_divides_by_one_less():
    assert stats.spread([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    mean, deviation = stats.spread([0.5])
    assert mean == 0.5
    assert math.isnan(deviation)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(4, 0, 0.125), (5, 0, 0.0625), (6, 0, 0.03125), (3, 3, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_is_an_exact_binomial_test(first, second, p):
    from scipy.stats import binomtest

    assert stats.mcnemar_p(first, second) == pytest.approx(p)
    assert stats.mcnemar_p(second, first) == pytest.approx(p)
    if first + second:
        assert p == pytest.approx(binomtest(first, first + second, 0.5).pvalue)


def test_answers_that_all_agree_still_have_an_interval():
    """Rule of three: 30 of 30 right leaves room for about 11 % wrong."""
    low, high = stats.accuracy_interval([1] * 30)
    assert high == 1.0 and low == pytest.approx(0.025 ** (1 / 30))
    assert stats.accuracy_interval([0] * 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert stats.accuracy_interval([0, 1] * 40) == stats.bootstrap_interval([0, 1] * 40)


def test_resampled_sums_are_sums_over_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((40, 3)) * (1, 10, 100)
    sums = stats.resampled_sums(values, 4000)
    assert sums.shape == (4000, 3) and (sums == stats.resampled_sums(values, 4000)).all()
    assert stats.resampled_sums(np.ones((40, 1)), 50).tolist() == [[40]] * 50
    drawn = np.array([values[rng.integers(40, size=40)].sum(axis=0) for _ in range(4000)])
    np.testing.assert_allclose(sums.mean(axis=0), values.sum(axis=0), rtol=0.01)
    np.testing.assert_allclose(np.cov(sums.T), np.cov(drawn.T), rtol=0.1, atol=0.05 * drawn.std(axis=0).max())
    monkeypatch.setattr(stats, "_MAX_VALUES_AT_ONCE", 70)  # one resample at a time
    assert stats.resampled_sums(values, 7).shape == (7, 3)


def test_sample_size_is_that_of_the_textbook():
    """The formula of Connor 1987 with the quantiles of a table."""
    better, worse = 0.25, 0.05
    z, power = 1.959964, 0.841621
    by_hand = (z * math.sqrt(0.30) + power * math.sqrt(0.30 - 0.04)) ** 2 / 0.04
    assert stats.sample_size(better, worse) == math.ceil(by_hand)
    assert stats.sample_size(0.1, 0.1) is None
    assert stats.sample_size(0.1, 0.0) < stats.sample_size(0.1, 0.0, level=0.01)


def test_welch_p_is_that_of_scipy():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size, other in ((3, 3), (3, 5), (10, 4), (40, 60)):
        first, second = rng.normal(0, 1, size), rng.normal(0.8, 2, other)
        wanted = scipy.ttest_ind(first, second, equal_var=False).pvalue
        assert stats.welch_p(first, second) == pytest.approx(wanted, rel=1e-5)
    assert stats.welch_p([1, 1, 1], [1, 1, 1]) == 1 and stats.welch_p([1, 1, 1], [2, 2, 2]) == 0
