from __future__ import annotations

import pytest

from warmstart.config.threshold import ThresholdRule, parse_threshold


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("f1", ThresholdRule("f1")),
        ("cost=5:1", ThresholdRule("cost", miss=5, alarm=1)),
        ("COST = .5:2", ThresholdRule("cost", miss=0.5, alarm=2)),
        ("recall>=.95", ThresholdRule("recall", 0.95)),
        (".4", ThresholdRule("fixed", 0.4)),
        (0.25, ThresholdRule("fixed", 0.25)),
    ],
)
def test_written_forms_and_back(text: object, rule: ThresholdRule) -> None:
    assert parse_threshold(text) == rule
    assert parse_threshold(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recall>=1.5", "no threshold has a recall of 1.5"),
        ("recall>=0", "above 0"),
        ("cost=0:1", "two costs above 0"),
        ("1", "between 0 and 1"),
        ("f2", "is not a threshold; write f1, cost=5:1"),
    ],
)
def test_what_nothing_can_satisfy_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        parse_threshold(text)


@pytest.mark.parametrize("value", [None, "none", " None "])
def test_none(value: str | None) -> None:
    assert parse_threshold(value) is None
