"""The written form of stages: one parser for flags, YAML and Python, and `str()` gives the form back."""

from __future__ import annotations

from typing import Any

import pytest

from warmstart.config.schema import AdaptConfig
from warmstart.config.unfreezing import Trigger, Unfreeze, parse_unfreeze

HEAD, ALL = Unfreeze(Trigger("epochs", 0), "head"), Unfreeze(Trigger("epochs", 6), "all")


@pytest.mark.parametrize(
    "written",
    ["0:head,6:all", "6epochs:all,0:head", {0: "head", "6": "all"}, [[0, "head"], {6: "all"}], (HEAD, ALL)],
)
def test_epochs(written: Any) -> None:
    assert parse_unfreeze(written) == (HEAD, ALL)


@pytest.mark.parametrize("nothing", [None, "none", ""])
def test_no_stages(nothing: str | None) -> None:
    assert parse_unfreeze(nothing) == ()


def test_every_trigger_with_blocks_and_rate() -> None:
    written = "0:head,500steps:backbone>3,plateau:backbone>.5@2e-4,f1 >= .80:conv?@1e-5,loss<=0.3:all"
    assert parse_unfreeze(written) == (
        HEAD,
        Unfreeze(Trigger("steps", 500), "backbone>3"),
        Unfreeze(Trigger("plateau"), "backbone>.5", 2e-4),
        Unfreeze(Trigger("metric", 0.8, "f1", ">="), "conv?", 1e-5),
        Unfreeze(Trigger("metric", 0.3, "loss", "<="), "all"),
    )
    config = AdaptConfig(unfreeze=written)
    again = config.model_dump(mode="json")["unfreeze"]
    assert again == (
        "0:head,500steps:backbone>3,plateau:backbone>.5@0.0002,f1>=0.8:conv?@1e-05,loss<=0.3:all"
    )
    assert AdaptConfig(unfreeze=again) == config


def test_times_alone_are_brought_into_order_and_a_mixture_is_left_alone() -> None:
    assert list(map(str, parse_unfreeze("20steps:b,5steps:c,0:a"))) == ["0:a", "5steps:c", "20steps:b"]
    assert list(map(str, parse_unfreeze("0:a,9:b,plateau:c,3:d"))) == ["0:a", "9:b", "plateau:c", "3:d"]


def test_a_block_name_may_hold_the_separator() -> None:
    assert parse_unfreeze("0:a:b") == (Unfreeze(Trigger("epochs", 0), "a:b"),)


def test_steps_of_a_trigger() -> None:
    (first, second, third) = parse_unfreeze("2:a,5steps:b,plateau:c")
    assert [entry.trigger.step(7) for entry in (first, second, third)] == [14, 5, None]


@pytest.mark.parametrize("bad", ["x", "1:", ":head", 3, {0: {"a": "b"}}, {0: None}])
def test_what_is_no_unfreezing(bad: Any) -> None:
    with pytest.raises(ValueError, match="is not of the form '0:head'"):
        parse_unfreeze(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "-1:a",
        "x:a",
        "1.5:a",
        "1²:a",
        "9999999999:a",
        "3m:a",
        "f1:a",
        "f1>.8:a",
        "f1>=x:a",
        "f1>=nan:a",
        "f1=>.8:a",
    ],
)
def test_what_begins_no_stage(bad: str) -> None:
    with pytest.raises(ValueError, match="is not when a stage begins; write 20 "):
        parse_unfreeze(bad)


@pytest.mark.parametrize(
    "bad", ["1:all@", "1:all@x", "1:all@0", "1:all@-1", "1:all@inf", "1:all@nan", "1:@1e-3"]
)
def test_rates_of_stages_are_numbers_above_0(bad: str) -> None:
    with pytest.raises(ValueError, match="behind @ stands the base rate of the stage"):
        parse_unfreeze(bad)
