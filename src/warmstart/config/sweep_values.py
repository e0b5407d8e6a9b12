"""What a sweep varies: lists of values and ranges, in the compact form of `--set NAME=VALUES`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_FORMS = "write .15,.20,.25 or 2e-4..8e-4:log or 16..64:int:16 (a step)"
_MOST_VALUES = 1000  # of one setting in a grid
_SLACK = 1e-9  # of a step: .1 has no exact number


@dataclass(frozen=True)
class Choice:
    """One of these, as they are written."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return ("|" if any("," in value for value in self.values) else ",").join(self.values)

    @property
    def grid(self) -> tuple[str, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`, both included; `step` apart where there is one."""

    low: float
    high: float
    is_log: bool = False
    is_int: bool = False
    step: float | None = None

    def __str__(self) -> str:
        marks = [":log"] * self.is_log + [":int"] * self.is_int
        marks += [] if self.step is None else [f":{written(self.step)}"]
        return f"{written(self.low)}..{written(self.high)}{''.join(marks)}"

    @property
    def grid(self) -> tuple[str, ...] | None:
        """The values of a grid; None where nothing says which."""
        step = 1.0 if self.is_int and self.step is None and not self.is_log else self.step
        if step is None:
            return None
        num = int((self.high - self.low) / step + _SLACK) + 1
        return tuple(written(round(self.low + step * n, 12)) for n in range(min(num, _MOST_VALUES + 1)))


Space = tuple[tuple[str, Choice | Range], ...]


def written(number: float) -> str:
    """A number as one writes it: 16 for 16.0."""
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)


def parse_space(value: Any) -> Space:
    """`["lr=2e-4..8e-4:log", "dropout=.1,.2"]`, or a mapping from names to such forms, lists, Choice or Range."""
    pairs = [*_pairs(value)]
    if not pairs:
        raise ValueError(f"nothing is varied; {_FORMS}")
    found: list[tuple[str, Choice | Range]] = []
    for name, given in pairs:
        name = name.strip().lstrip("-").replace("_", "-")
        if name in dict(found):
            raise ValueError(f"{name} is given twice")
        found.append((name, _values(name, given)))
    return tuple(found)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), given) for name, given in value.items())
        return
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"{value!r} is not NAME=VALUES; {_FORMS}")
    for item in [value] if isinstance(value, str) else value:
        if isinstance(item, (list, tuple)) and len(item) == 2:
            yield str(item[0]), item[1]
            continue
        name, sign, given = str(item).partition("=")
        if not sign or not name.strip():
            raise ValueError(f"{item!r} is not NAME=VALUES; {_FORMS}")
        yield name, given


def _values(name: str, given: Any) -> Choice | Range:
    if isinstance(given, (Choice, Range)):
        return given
    if isinstance(given, (list, tuple)):
        words = [str(word).lower() if isinstance(word, bool) else str(word) for word in given]
    else:
        text = str(given).strip()
        low, dots, rest = text.partition("..")
        if dots and _is_number(low):  # ../weights.pt is no range
            return _range(name, low, rest)
        words = text.split("|" if "|" in text else ",")
    words = [word.strip() for word in words]
    if not all(words):
        raise ValueError(f"{name} has an empty value; {_FORMS}")
    double = sorted({word for word in words if sum(_same(word, other) for other in words) > 1})
    if double:
        raise ValueError(f"{name} has {', '.join(double)} more than once")
    if len(words) == 1:
        raise ValueError(f"{name} has one value, {words[0]}: put it into the config; {_FORMS}")
    return Choice(tuple(words))


def _range(name: str, first: str, rest: str) -> Range:
    last, *marks = rest.split(":")
    text = f"{name}={first}..{rest}"
    low, high = _number(name, first), _number(name, last)
    is_log, is_int = "log" in marks, "int" in marks
    steps = [mark for mark in marks if mark not in ("log", "int")]
    if len(steps) > 1 or len(marks) != len(frozenset(marks)):
        raise ValueError(f"{text}: {_FORMS}")
    step = _number(name, steps[0]) if steps else None
    if not low < high:
        raise ValueError(f"{text} ends where it begins, or before")
    if is_log and (low <= 0 or step is not None):
        raise ValueError(f"{text}: a range by its logarithm begins above 0 and has no step")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"{text}: the step does not fit into the range")
    if is_int and any(number != int(number) for number in (low, high, step or 0)):
        raise ValueError(f"{text}: whole numbers for a range of whole numbers")
    return Range(low, high, is_log, is_int, step)


def _number(name: str, text: str) -> float:
    if not _is_number(text):
        raise ValueError(f"{name}: {text!r} is not a number; {_FORMS}")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _same(word: str, other: str) -> bool:
    """Whether two written values mean the same number, or are the same word."""
    if _is_number(word) and _is_number(other):
        return float(word) == float(other)
    return word == other


def _dumped(space: Space) -> dict[str, str]:
    return {name: str(values) for name, values in space}


Varied = Annotated[Space, BeforeValidator(parse_space), PlainSerializer(_dumped)]
