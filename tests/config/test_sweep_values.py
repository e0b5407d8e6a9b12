"""What a sweep varies: every form is read, written back the same, and refused where it means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from warmstart.config.io import validate_section
from warmstart.config.sweep_section import SweepConfig, problems
from warmstart.config.sweep_values import Choice, Range, parse_space
from warmstart.errors import UserError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("dropout=.15,.20,.25", Choice((".15", ".20", ".25"))),
        ("lr=2e-4..8e-4:log", Range(2e-4, 8e-4, is_log=True)),
        ("weight_decay=0...5", Range(0, 0.5)),
        ("dropout=.1...5:.1", Range(0.1, 0.5, step=0.1)),
        ("batch-size=16..64:int:16", Range(16, 64, is_int=True, step=16)),
        ("epochs=2..64:int:log", Range(2, 64, is_log=True, is_int=True)),
        ("freeze=none|stem,conv*", Choice(("none", "stem,conv*"))),
        ("weights=../a.pt,../b.pt", Choice(("../a.pt", "../b.pt"))),
        ({"dropout": [0.1, 0.2]}, Choice(("0.1", "0.2"))),
        ({"freeze-bn": [True, False]}, Choice(("true", "false"))),
    ],
)
def test_forms_are_read_and_written_back(written: Any, meant: Choice | Range) -> None:
    ((name, found),) = parse_space([written] if isinstance(written, str) else written)
    assert found == meant and name == name.replace("_", "-")
    assert parse_space([f"{name}={found}"]) == ((name, meant),)


def test_what_a_grid_takes_of_a_range() -> None:
    assert Range(0.1, 0.5, step=0.1).grid == ("0.1", "0.2", "0.3", "0.4", "0.5")
    assert Range(1, 4, is_int=True).grid == ("1", "2", "3", "4")
    assert Range(1, 4).grid is None and Range(1, 64, is_int=True, is_log=True).grid is None


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ([], "nothing is varied"),
        (["lr"], "not NAME=VALUES"),
        (["lr=1e-3"], "has one value"),
        (["lr=1e-3,0.001"], "lr has 0.001, 1e-3 more than once"),
        (["lr=1e-3,,1e-2"], "empty value"),
        (["lr=1e-3..1e-4"], "ends where it begins"),
        (["lr=0..1:log"], "begins above 0"),
        (["lr=1..x"], "'x' is not a number"),
        (["lr=1..2:quick"], "'quick' is not a number"),
        (["epochs=1..2.5:int"], "whole numbers"),
        (["lr=1..2:3"], "step does not fit"),
        (["lr=1..2:log:int:log"], "write .15"),
        (["lr=1,2", "lr=3,4"], "lr is given twice"),
    ],
)
def test_what_means_nothing_is_refused(written: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        validate_section(SweepConfig, {"set": written})
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "grid", "set": ["lr=1..2"]}, "--method grid with a range: lr"),
        ({"set": ["lr=1,2"], "trials": 4}, "--trials with a grid"),
        ({"devices": "cuda:0", "slots": 2}, "--slots beside --devices"),
        ({"devices": "cuda:0", "engine": "ray"}, "--devices with --engine ray"),
        ({"ray_address": "auto"}, "--ray-address without"),
        ({"time_budget": "2epochs"}, "--time-budget 2epochs"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], told: str) -> None:
    found = problems(validate_section(SweepConfig, {"set": ["lr=1..2:log"], **given}))
    assert [told in str(each) for each in found] == [True]


def test_lists_alone_make_a_grid() -> None:
    assert validate_section(SweepConfig, {"set": ["lr=1,2"]}).searched_by == "grid"
    assert validate_section(SweepConfig, {"set": ["lr=1,2", "dropout=.1...2"]}).searched_by == "tpe"
    assert validate_section(SweepConfig, {"set": ["lr=1,2"], "method": "random"}).searched_by == "random"
