"""Several tasks: `name=PATH,...`, weights by name or learned ones, and how often each task has its turn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from warmstart.config.values import parse_pairs

UNCERTAINTY = "uncertainty"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True)
class Sampling:
    """The share of a task with N_t training images is N_t^exponent / sum: 1 is proportional, 0 equal."""

    word: str
    exponent: float

    def __str__(self) -> str:
        return self.word

    def shares(self, sizes: list[int]) -> list[float]:
        largest = max(sizes)
        raised = [(size / largest) ** self.exponent for size in sizes]
        return [each / sum(raised) for each in raised]


def check_task_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a task: letters, digits, - and _, such as digits")
    return name


def parse_tasks(value: Any) -> tuple[tuple[str, str], ...]:
    """`digits=PATH,shapes=PATH`, or a mapping."""
    pairs = [(str(name), str(path)) for name, path in parse_pairs(value, "=", "NAME=PATH")]
    return tuple((check_task_name(name), path) for name, path in _once(pairs))


def parse_task_numbers(value: Any) -> tuple[tuple[str, float], ...]:
    """`digits=.5,shapes=2`, or a mapping; numbers are 0 or more, and not all of them 0."""
    pairs = []
    for name, text in _once([(str(name), text) for name, text in parse_pairs(value, "=", "NAME=NUMBER")]):
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{name}={text}: {text!r} is not a number") from None
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name}={text}: a weight is 0 or more")
        pairs.append((name, number))
    return tuple(pairs)


def parse_task_weights(value: Any) -> str | tuple[tuple[str, float], ...]:
    """As `parse_task_numbers`, or the word `uncertainty`."""
    if isinstance(value, str) and value.strip().lower() == UNCERTAINTY:
        return UNCERTAINTY
    return parse_task_numbers(value)


def parse_sampling(value: Any) -> Sampling:
    """`proportional`, `equal`, or `temperature=T`, which has the exponent 1 / T."""
    if isinstance(value, Sampling):
        return value
    word = str(value).strip().lower()
    if word in ("proportional", "equal"):
        return Sampling(word, float(word == "proportional"))
    name, equals, text = word.partition("=")
    try:
        temperature = float(text)
    except ValueError:
        temperature = 0.0
    if name != "temperature" or not equals or not 1 <= temperature < float("inf"):
        raise ValueError(f"{value!r} is not proportional, equal, or temperature=T with T of 1 or more")
    return Sampling(f"temperature={temperature:g}", 1 / temperature)


def _once(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the task {twice!r} is named twice")
    return pairs


def _written(value: str | tuple[tuple[str, Any], ...]) -> str | None:
    return value if isinstance(value, str) else ",".join(f"{name}={each}" for name, each in value) or None


TaskPlaces = Annotated[
    tuple[tuple[str, str], ...], BeforeValidator(parse_tasks), PlainSerializer(lambda v: dict(v))
]
TaskNumbers = Annotated[
    tuple[tuple[str, float], ...], BeforeValidator(parse_task_numbers), PlainSerializer(_written)
]
TaskWeights = Annotated[
    str | tuple[tuple[str, float], ...], BeforeValidator(parse_task_weights), PlainSerializer(_written)
]
TaskName = Annotated[str, BeforeValidator(lambda value: check_task_name(str(value)))]
TaskSampling = Annotated[Sampling, BeforeValidator(parse_sampling), PlainSerializer(str)]
