"""Values with a compact written form: durations, sizes, rates by pattern, unfreezing entries.

Each has one parser, used alike for flags, YAML and Python, and `str()` gives the form back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_DURATION = re.compile(r"^(\d+(?:\.\d+)?|\.\d+)\s*(steps?|epochs?|s|m|h)?$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Duration:
    """An amount of training: `unit` is steps, epochs, seconds or share (of the run).

    A bare number from 1 on means epochs, one below 1 a share.
    """

    amount: float
    unit: str

    def __str__(self) -> str:
        suffix = {"seconds": "s", "share": ""}.get(self.unit, self.unit)
        return f"{self.amount:g}{suffix}"

    def steps(self, steps_per_epoch: int) -> int:
        """The same amount in optimizer steps, at least 1; seconds and shares need more than this to have any."""
        assert self.unit in ("steps", "epochs"), f"{self} has no fixed number of steps"
        amount = self.amount * (steps_per_epoch if self.unit == "epochs" else 1)
        return max(1, round(amount))


def parse_duration(value: Any) -> Duration | None:
    """`12`, `12epochs`, `500steps`, `90s`, `10m`, `2h`, `.1` (a share); `none` and 0 are None."""
    if value is None or isinstance(value, Duration):
        return value
    text = str(value).strip().lower()
    if text in ("none", "", "0"):
        return None
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 12, 12epochs, 500steps, 90s, 10m or 2h")
    amount = float(match[1])
    unit = match[2] or ("epochs" if amount >= 1 else "share")
    if unit in _SECONDS:
        return Duration(amount * _SECONDS[unit], "seconds")
    return Duration(amount, unit if unit == "share" else unit.rstrip("s") + "s")


def parse_size(value: Any) -> tuple[int, int] | None:
    """`64` or `32x64` (height x width), in pixels."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    parts = [*value] if isinstance(value, (list, tuple)) else str(value).lower().split("x")
    if len(parts) == 1:
        parts *= 2
    try:
        height, width = (int(str(part)) for part in parts)
    except ValueError:
        raise ValueError(f"{value!r} is not an image size; write 64 or 32x64 (height x width)") from None
    if not (0 < height <= 8192 and 0 < width <= 8192):
        raise ValueError(f"image size {height}x{width} is outside 1..8192 pixels")
    return height, width


def parse_limit(value: Any) -> float | int | None:
    """A share below 1 (`.1`) or a number of images (`500`)."""
    if value is None or str(value).strip().lower() == "none":
        return None
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(
            f"{value!r} is not a limit; write a share such as .1 or a number such as 500"
        ) from None
    if number <= 0 or (number > 1 and number != int(number)):
        raise ValueError(f"{value!r} is not a limit; write a share such as .1 or a number such as 500")
    return number if number < 1 else int(number)


def parse_floats(value: Any) -> tuple[float, ...] | None:
    """`.49,.48,.45` or a list of numbers."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    if isinstance(value, (int, float)):
        return (float(value),)
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a list of numbers; write .49,.48,.45") from None


def parse_names(value: Any) -> tuple[str, ...]:
    """`stem,blocks.*` or a list of names."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    names = tuple(str(part).strip() for part in parts if str(part).strip())
    return () if names == ("none",) else names


def parse_rates(value: Any) -> tuple[tuple[str, float], ...]:
    """`backbone=1e-5,head=1e-4`, a mapping, or a list of pairs: first match wins."""
    return tuple((name, _number(rate, f"{name}=RATE")) for name, rate in _pairs(value, "=", "backbone=1e-5"))


def parse_unfreeze(value: Any) -> tuple[tuple[int, str], ...]:
    """`0:head,2:blocks.11,6:all` (epoch:block), a mapping, or a list of pairs."""
    entries = []
    for epoch, block in _pairs(value, ":", "0:head"):
        if not str(epoch).isdigit():
            raise ValueError(f"{epoch!r} is not an epoch (0, 1, 2, ...); write 0:head,2:blocks.3,6:all")
        entries.append((int(epoch), str(block)))
    return tuple(entries)


def _pairs(value: Any, separator: str, example: str) -> list[tuple[Any, Any]]:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
        return []
    if isinstance(value, dict):
        return list(value.items())
    parts = value.split(",") if isinstance(value, str) else value
    pairs = []
    for part in parts:
        pair = [p.strip() for p in part.split(separator, 1)] if isinstance(part, str) else [*part]
        if len(pair) != 2 or pair[0] == "" or pair[1] == "":
            raise ValueError(f"{part!r} is not of the form {example!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _number(value: Any, form: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number in {form}") from None


def _none_word(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _written(value: Any) -> Any:
    return None if value is None else str(value)


def _written_size(value: tuple[int, int] | None) -> str | None:
    return None if value is None else f"{value[0]}x{value[1]}"


def _written_pairs(separator: str) -> PlainSerializer:
    return PlainSerializer(lambda pairs: ",".join(f"{a}{separator}{b}" for a, b in pairs) or None)


OptionalDuration = Annotated[Duration | None, BeforeValidator(parse_duration), PlainSerializer(_written)]
Size = Annotated[tuple[int, int] | None, BeforeValidator(parse_size), PlainSerializer(_written_size)]
Limit = Annotated[float | int | None, BeforeValidator(parse_limit)]
Floats = Annotated[
    tuple[float, ...] | None, BeforeValidator(parse_floats), PlainSerializer(lambda v: v and list(v))
]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names), PlainSerializer(list)]
Rates = Annotated[tuple[tuple[str, float], ...], BeforeValidator(parse_rates), _written_pairs("=")]
Unfreezing = Annotated[tuple[tuple[int, str], ...], BeforeValidator(parse_unfreeze), _written_pairs(":")]
OptionalFloat = Annotated[float | None, BeforeValidator(_none_word)]
OptionalInt = Annotated[int | None, BeforeValidator(_none_word)]
