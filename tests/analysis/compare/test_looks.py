"""Each new comparison on a split is a chance more; the same one again is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from warmstart.analysis.compare.looks import Looks, count_pair, count_table
from warmstart.analysis.compare.sides import open_side
from warmstart.errors import UserError
from warmstart.run import layout

TARGETS = np.arange(6) % 3
RIGHT = np.full(6, True)


def test_pairs_and_tables_are_counted_beside_the_runs(write_run):
    a, b, c = (open_side(str(write_run(name, RIGHT, TARGETS))) for name in "abc")
    assert count_pair([a, b], "test", "f0").num_chances == 1
    assert count_pair([b, a], "test", "f0").num_chances == 1  # the same question
    assert count_pair([a, c], "test", "f0").num_chances == 2
    assert count_pair([a, c], "test", "f1").num_chances == 1  # other data
    count_table([a, b, c], "test", "f0")
    found = count_pair([a, c], "test", "f0")
    assert (found.num_pairs, found.largest_table, found.num_chances) == (2, 3, 4)
    file = c.run.path.parent / layout.LOOKS
    assert json.loads(file.read_text())["data"]["f0"]["test"]["pairs"] == ["a@8 | b@8", "a@8 | c@8"]


def test_on_val_every_validation_was_a_chance(write_run):
    a = open_side(str(write_run("a", RIGHT, TARGETS, (0.1, 0.2, 0.3, 0.4))))
    b = open_side(str(write_run("b", RIGHT, TARGETS)))
    assert count_pair([a, b], "val", "f0").num_chances == 4
    assert "0.05 / 4 = 0.013" in count_pair([a, b], "val", "f0").text(0.05)
    assert "this comparison only" in Looks("test").text(0.05)


def test_a_damaged_count_is_refused(write_run):
    a, b = (open_side(str(write_run(name, RIGHT, TARGETS))) for name in "ab")
    file = b.run.path.parent / layout.LOOKS
    for content in ("{", "[]", '{"format": 1, "data": {"f0": {"test": {"pairs": 3}}}}'):
        file.write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            count_pair([a, b], "test", "f0")
