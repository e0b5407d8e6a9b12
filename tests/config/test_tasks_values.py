"""The section `tasks`: what it reads, and every contradiction by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from warmstart.config.io import load
from warmstart.config.schema import Config
from warmstart.config.tasks_rules import task_names, task_shares, task_weights
from warmstart.config.tasks_values import parse_sampling, parse_task_numbers, parse_task_weights, parse_tasks
from warmstart.errors import UserError


def test_what_is_written_is_read_again() -> None:
    config = Config.model_validate(
        {
            "tasks": {
                "data": "a=x/y,b=z=1",
                "weights": "a=.5,b=2",
                "sampling": "Temperature=4",
                "select": {"a": 1},
            }
        }
    )
    assert config.tasks.data == (("a", "x/y"), ("b", "z=1"))
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again == config
    learned = Config.model_validate({"tasks": {"weights": "Uncertainty"}})
    assert Config.model_validate(learned.model_dump(mode="json")).tasks.weights == "uncertainty"


@pytest.mark.parametrize(
    ("call", "value", "told"),
    [
        (parse_tasks, "a=x,a=y", "named twice"),
        (parse_tasks, "a b=x", "no name of a task"),
        (parse_tasks, "x", "NAME=PATH"),
        (parse_task_numbers, "a=-1", "0 or more"),
        (parse_task_numbers, "a=much", "not a number"),
        (parse_task_weights, "certainty", "NAME=NUMBER"),
        (parse_sampling, "temperature=.5", "1 or more"),
        (parse_sampling, "often", "proportional, equal"),
    ],
)
def test_what_cannot_be_read_says_why(call: Any, value: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call(value)


def given(tmp_path: Path, **more: Any) -> dict[str, Any]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir(exist_ok=True)
    base = {
        "data": str(tmp_path / "first"),
        "tasks": f"second={tmp_path / 'second'}",
        "model": "builtin:fashion_cnn",
    }
    return {**base, "weights": "none", **more}


def test_names_weights_and_shares(tmp_path: Path) -> None:
    config = load(
        given(tmp_path, **{"tasks.weights": "second=.5", "tasks.select": "first=3,second=1"})
    ).config
    assert task_names(config) == ("first", "second")
    assert task_weights(config) == {"first": 1.0, "second": 0.5}
    assert task_shares(config) == {"first": 0.75, "second": 0.25}
    assert task_weights(load(given(tmp_path, **{"tasks.weights": "uncertainty"})).config) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tasks.first": "second"}, "two tasks are called 'second'"),
        ({"tasks": "again={first}"}, "is the data set of another task"),
        ({"tasks": "second={missing}"}, "does not exist"),
        ({"tasks.weights": "secnd=1"}, "no task is called 'secnd'"),
        ({"tasks.weights": "first=0,second=0"}, "sum to zero"),
        ({"tasks.select": "first=0"}, "sum to zero"),
        ({"tasks": "none", "tasks.weights": "uncertainty"}, "without --tasks"),
        ({"mixup": 0.2}, "--mixup is not for several tasks"),
        ({"lora.rank": 4}, "--lora.rank is not for several tasks"),
        ({"class_weights": "cat=2"}, "names classes of one task"),
        ({"threshold": "f1"}, "--threshold is not for several tasks"),
    ],
)
def test_contradictions_are_told_before_anything_is_opened(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    places = {"first": tmp_path / "first", "missing": tmp_path / "missing"}
    settings = {name: v.format(**places) if isinstance(v, str) else v for name, v in settings.items()}
    with pytest.raises(UserError, match=told):
        load(given(tmp_path, **settings))
