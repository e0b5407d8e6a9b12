"""What `--require` understands, and what holds."""

from __future__ import annotations

import pytest

from warmstart.analysis.compare.differences import Difference
from warmstart.analysis.compare.require import check, check_metrics, parse
from warmstart.errors import UserError

OVERALL = [
    Difference("f1", 0.80, 0.79, -0.03, 0.01),
    Difference("accuracy", 0.80, 0.85, 0.03, 0.07),
    Difference("loss", 0.50, 0.60, 0.05, 0.15),
]
CLASSES = [Difference("cat", 0.9, 0.875, -0.06, 0.01, 40), Difference("dog", 0.9, 0.95, 0.01, 0.09, 60)]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("f1 not worse", True),  # not shown to be
        ("f1 not worse by 2pt", False),  # nor shown not to be
        ("f1 not worse by 4pt", True),
        ("f1 not worse by .04", True),
        ("accuracy better", True),
        ("accuracy better by 5pt", False),
        ("loss not worse", False),  # it rose
        ("no class -2pt", False),
        ("no class -3pt", True),
        ("no class worse", True),
        ("no  class  -2 pt", False),
    ],
)
def test_a_requirement_holds_by_the_interval_and_of_classes_by_the_measurement(text, passed):
    (found,) = check(parse(text), OVERALL, CLASSES)
    assert found.passed is passed, found
    assert ("cat -0.0250 of 40" in found.why) == (text in ("no class -2pt", "no  class  -2 pt"))


def test_several_are_divided_by_semicolons_or_commas():
    assert [r.text for r in parse("f1 not worse; no class -2pt, loss better")] == [
        "f1 not worse",
        "no class -2pt",
        "loss better",
    ]


@pytest.mark.parametrize(
    "text", ["", " ; ", "f1", "f1 worse", "f1 not worse by", "no class", "f1 better by 1..2pt"]
)
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(UserError, match="--require"):
        parse(text)


def test_an_unknown_metric_has_a_closest_name():
    with pytest.raises(UserError, match=r"no metric 'acuracy'.*\n.*\n.*'accuracy'"):
        check_metrics(parse("acuracy better"), ["accuracy", "loss"])
