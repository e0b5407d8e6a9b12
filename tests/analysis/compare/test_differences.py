"""Verdicts: right on what is told by hand, at the nominal level where there is nothing to find, and of known power."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart import stats
from warmstart.analysis.compare.differences import (
    Difference,
    ExactTest,
    class_differences,
    differences,
    direction,
)
from warmstart.analysis.compare.measures import measure


def _compare(first, second, level=0.05):
    found = measure([first, second])
    main = next(row for row in differences(found, level) if row.name == "accuracy")
    return main, ExactTest.of(found.cost), found


def test_twenty_fixed_and_none_broken_is_better_and_the_other_way_round_worse(made):
    targets = np.arange(200) % 3
    before, after = np.arange(200) < 140, np.arange(200) < 160
    main, test, found = _compare(made(before, targets), made(after, targets))
    assert (test.fixed, test.broken, direction(main, test, 0.05)) == (20, 0, 1)
    assert main.difference == pytest.approx(0.1) and main.low < 0.1 < main.high
    main, test, _ = _compare(made(after, targets), made(before, targets))
    assert direction(main, test, 0.05) == -1
    rows = class_differences(found, ("ant", "bee", "cat"), 0.05 / 3)
    assert sum(row.support for row in rows) == 200
    assert all(row.low <= row.difference <= row.high for row in rows)
    assert [row.difference for row in rows] == sorted(row.difference for row in rows)


def test_a_loss_is_better_when_it_falls():
    row = Difference("loss", 0.5, 0.4, -0.15, -0.05)
    assert row.gain == pytest.approx(0.1) and row.gains == (0.05, 0.15)


def test_what_would_be_enough_is_more_than_there_is_and_enough_in_fact():
    """6 fixed and 2 broken of 100 prove nothing; with as many as are named, four of five tries find it."""
    test = ExactTest(6, 2, stats.mcnemar_p(6, 2))
    enough = test.enough(100, 0.05)
    assert enough is not None and 200 < enough < 1000
    draws = np.random.default_rng(0).multinomial(enough, (0.06, 0.02, 0.92), size=400)
    power = np.mean([stats.mcnemar_p(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert power == pytest.approx(0.8, abs=0.06)
    assert ExactTest(3, 3, 1.0).enough(100, 0.05) is None


def test_the_same_model_with_other_mistakes_is_rarely_taken_for_another(made):
    """300 pairs of equally good models: each verdict is a false one, and they may be 5 % of them."""
    rng = np.random.default_rng(0)
    targets = np.arange(250) % 3
    verdicts = 0
    for _ in range(300):
        before, after = rng.random((2, 250)) < 0.8
        cost = np.stack([~before, ~after]).astype(float)
        low, high = stats.bootstrap_interval(cost[0] - cost[1])
        main = Difference("accuracy", before.mean(), after.mean(), low, high)
        verdicts += direction(main, ExactTest.of(cost), 0.05) != 0
    assert verdicts <= 22  # 15 at the nominal level, and two standard deviations
    model = made(rng.random(250) < 0.8, targets)
    main, test, _ = _compare(model, model)
    assert direction(main, test, 0.05) == 0 and test.p == 1
