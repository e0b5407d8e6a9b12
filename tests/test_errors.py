from __future__ import annotations

import pytest

from warmstart.errors import UserError, closest, listing


def test_three_parts():
    error = UserError("the disk is full", "2 MB of room", "remove something")
    assert str(error) == "the disk is full\nExpected: 2 MB of room\nFix: remove something"
    assert str(UserError("it rained")) == "it rained"
    assert (error.happened, error.expected, error.fix) == (
        "the disk is full",
        "2 MB of room",
        "remove something",
    )


def test_one_problem_stays_as_it_is():
    error = UserError("a", "b", "c")
    assert UserError.of_problems([error], "the settings") is error


def test_many_problems_are_one_numbered_message():
    joined = UserError.of_problems([UserError("a", "b"), UserError("c", fix="d")], "the settings")
    assert str(joined) == "2 problems in the settings:\n  1. a\n     Expected: b\n  2. c\n     Fix: d"


def test_no_problem_is_no_error():
    with pytest.raises(AssertionError, match="at least one problem"):
        UserError.of_problems([], "the settings")


def test_the_closest_name():
    assert closest("epohcs", ["epochs", "lr"]) == "Did you mean 'epochs'?"
    assert closest("zzz", ["epochs", "lr"]) == ""
    assert closest("", []) == ""


def test_listings_say_what_they_leave_out():
    assert listing([1, 2]) == "1, 2"
    assert listing(range(5), limit=2) == "0, 1, ... (3 more)"
    assert listing(name for name in ()) == ""
