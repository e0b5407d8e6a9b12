"""Successive halving as numbers: who trains how far, what it costs at most, and what a budget leaves of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from warmstart.errors import UserError
from warmstart.methods.tryout.halving import Candidate, most_seconds, rungs, within_budget


def candidate(number: int, epochs: int, seconds: float) -> Candidate:
    return Candidate(f"s{number}", "advised", 1e-3, epochs, seconds, {})


def test_every_rung_has_half_as_many_and_goes_twice_as_far() -> None:
    found = {num: [(rung.share, rung.num) for rung in rungs(num)] for num in (1, 2, 3, 4, 5, 6)}
    assert found[1] == [(1, 1)] and found[2] == [(0.5, 2), (1, 1)] and found[3] == [(0.5, 3), (1, 1)]
    assert found[4] == [(0.25, 4), (0.5, 2), (1, 1)] and found[6] == [(0.25, 6), (0.5, 3), (1, 1)]
    assert found[5] == [(0.25, 5), (0.5, 2), (1, 1)]
    for steps in map(rungs, range(1, 40)):
        assert steps[-1].share == 1 and steps[-1].num == 1
        assert all(2 * one.share == two.share and one.num // 2 == two.num for one, two in pairwise(steps))


def test_what_it_costs_at_most_is_counted_by_hand() -> None:
    # 4 x a quarter, 2 x another quarter, 1 x the other half, and 7 starts.
    assert most_seconds([100.0] * 4) == pytest.approx(100 + 50 + 50)
    assert most_seconds([100.0] * 4, 3.0) == pytest.approx(200 + 7 * 3)
    # The two that take longest survive the first comparison, the longest the second.
    assert most_seconds([8.0, 80.0, 800.0, 80.0]) == pytest.approx(2 + 20 + 200 + 20 + 200 + 20 + 400)


def test_a_budget_takes_the_same_share_of_everyone_and_then_the_last_ones() -> None:
    made = [
        candidate(0, 20, 100.0),
        candidate(1, 10, 100.0),
        candidate(2, 20, 100.0),
        candidate(3, 20, 100.0),
    ]
    assert within_budget(made, 1e9, 0.0) == tuple(made)
    half = within_budget(made, 100.0, 0.0)
    assert [each.share for each in half] == [0.5] * 4
    assert [each.flags({}, 4)["epochs"] for each in half] == [10, 5, 10, 10]
    # 20 seconds are a tenth, which is an epoch of ten; with less the last ones are left out.
    assert len(within_budget(made, 20.01, 0.0)) == 4
    fewer = within_budget(made, 19.0, 0.0)
    assert [each.name for each in fewer] == ["s0", "s1"] and fewer[0].share == pytest.approx(19 / 150)
    assert most_seconds([each.share * each.seconds for each in fewer]) <= 19.0


def test_a_budget_that_is_too_short_says_how_long_it_must_be() -> None:
    made = [candidate(0, 20, 100.0), candidate(1, 20, 100.0)]
    with pytest.raises(UserError, match=r"12 s are left of .*too short to try 2 .*\n.* about 38 s or more"):
        within_budget(made, 12.0, 10.0)
    assert len(within_budget(made, 38.0, 10.0)) == 2


def test_validations_come_at_the_first_rung() -> None:
    one = candidate(0, 2, 1.0)
    assert one.flags({"epochs": 2}, 5) == {"epochs": 2, "eval_every": "0.5epochs"}
    assert "eval_every" not in one.flags({"epochs": 4}, 3)
    assert one.flags({"eval_every": "7steps"}, 5) == {"epochs": 2, "eval_every": "7steps"}
    assert one.flags({"max_steps": 40}, 5) == {"epochs": 2, "max_steps": 40, "eval_every": "10steps"}
