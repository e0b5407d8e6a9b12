"""Values with a compact written form: durations, sizes, rates by pattern.

Each has one parser, used alike for flags, YAML and Python, and `str()` gives the form back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

_DURATION = re.compile(
    r"^(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*(steps?|epochs?|s|m|h)?$", re.ASCII
)
_LARGEST_AMOUNT = 1e12  # of anything: above it a count of steps is a slip of the keyboard
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
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount}{suffix}"

    def steps(self, steps_per_epoch: int) -> int:
        """The same amount in optimizer steps, at least 1; seconds and shares need more than this to have any."""
        assert self.unit in ("steps", "epochs"), f"{self} has no fixed number of steps"
        amount = self.amount * (steps_per_epoch if self.unit == "epochs" else 1)
        return max(1, round(amount))


def parse_duration(value: Any) -> Duration | None:
    """`12`, `12epochs`, `500steps`, `90s`, `10m`, `2h`, `.1` (a share); `none` and 0 of any unit are None."""
    if value is None or isinstance(value, Duration):
        return value
    text = str(value).strip().lower()
    if text == "none":
        return None
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 12, 12epochs, 500steps, 90s, 10m or 2h")
    amount = float(match[1])
    if amount > _LARGEST_AMOUNT:
        raise ValueError(f"{value!r} is longer than any run")
    if amount == 0:
        return None
    unit = match[2] or ("epochs" if amount >= 1 else "share")
    if unit in _SECONDS:
        return Duration(amount * _SECONDS[unit], "seconds")
    return Duration(amount, unit if unit == "share" else unit.rstrip("s") + "s")


@dataclass(frozen=True)
class Cadence:
    """Intervals one after the other, each with the amount of training up to which it holds (the last: None)."""

    parts: tuple[tuple[Duration, Duration | None], ...]

    def __str__(self) -> str:
        return ",".join(
            str(interval) + ("" if until is None else f":{until}") for interval, until in self.parts
        )

    @property
    def durations(self) -> tuple[Duration, ...]:
        return tuple(duration for part in self.parts for duration in part if duration is not None)


def parse_cadence(value: Any) -> Cadence | None:
    """One duration, or a list of `INTERVAL:UNTIL` with a last one that has no limit: `5epochs:20epochs,1epochs`."""
    if value is None or isinstance(value, Cadence):
        return value
    parts: list[tuple[Duration, Duration | None]] = []
    words = value.split(",") if isinstance(value, str) else _items(value)
    for number, word in enumerate(words, 1):
        first, colon, last = str(word).partition(":")
        interval, until = parse_duration(first), parse_duration(last) if colon else None
        if interval is None and len(words) == 1 and not colon:
            return None
        if interval is None or (colon and until is None):
            raise ValueError(f"{word!r} is not an interval with a limit; write 5epochs:20epochs")
        if (until is None) != (number == len(words)):
            raise ValueError(
                f"{value!r}: every interval but the last needs a limit, and the last has none; "
                "write 5epochs:20epochs,10epochs:50epochs,1epochs"
            )
        before = parts[-1][1] if parts else None
        if (
            before is not None
            and until is not None
            and until.unit == before.unit
            and until.amount <= before.amount
        ):
            raise ValueError(f"{value!r}: the limit {until} is not above the one before it, {before}")
        parts.append((interval, until))
    return Cadence(tuple(parts))


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
        number = math.nan
    if number == 1 and "." in str(value):
        raise ValueError(f"{value!r} could mean one image or all; write 1, or leave the limit out")
    if not 0 < number < math.inf or (number > 1 and number != int(number)):
        raise ValueError(f"{value!r} is not a limit; write a share such as .1 or a number such as 500")
    return number if number < 1 else int(number)


def parse_bytes(value: Any) -> int:
    """`8GB`, `8GiB`, `512MB` or `1TB` in bytes; each unit is 1024 of the one below, as memory is sold."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([mgt])i?b", str(value).strip().lower(), re.ASCII)
    number = int(float(match[1]) * 2 ** {"m": 20, "g": 30, "t": 40}[match[2]]) if match else 0
    if not 2**20 <= number < 2**60:
        raise ValueError(f"{value!r} is not an amount of memory; write 8GB, 512MB or 1TB")
    return number


def parse_floats(value: Any) -> tuple[float, ...] | None:
    """`.49,.48,.45` or a list of numbers."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    parts = value.replace(",", " ").split() if isinstance(value, str) else _items(value)
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{value!r} is not a list of numbers; write .49,.48,.45")
    return numbers


def parse_names(value: Any) -> tuple[str, ...]:
    """`stem,blocks.*` or a list of names."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else _items(value)
    if not all(isinstance(part, (str, int)) for part in parts):
        raise ValueError(f"{value!r} is not a list of names; write stem,blocks.*")
    names = tuple(str(part).strip() for part in parts if str(part).strip())
    return () if names == ("none",) else names


def parse_group(value: Any) -> str | None:
    r"""The name of a column, or a pattern such as `^(patient\d+)_` with one capture group."""
    if value is None or str(value).strip().lower() == "none":
        return None
    text = str(value)
    if is_pattern(text):
        try:
            num = re.compile(text).groups
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression: {error}") from None
        if num != 1:
            raise ValueError(f"{text!r} has {num} capture groups, not one; write ^(patient[0-9]+)_")
    return text


def is_pattern(group: str) -> bool:
    """Whether `data.group` is a pattern over ids rather than the name of a column."""
    return any(sign in group for sign in "\\^$*+?()[]{}|")


def parse_rates(value: Any) -> tuple[tuple[str, float], ...]:
    """`backbone=1e-5,head=1e-4`, a mapping, or a list of pairs: first match wins."""
    return tuple(
        (name, _number(rate, f"{name}=RATE")) for name, rate in parse_pairs(value, "=", "backbone=1e-5")
    )


def parse_pairs(value: Any, separator: str, example: str) -> list[tuple[Any, Any]]:
    """`a=1,b=2`, a mapping, or a list of pairs, as pairs of what stands there."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
        return []
    if isinstance(value, str):
        value = value.split(",")
    pairs = []
    for part in value.items() if isinstance(value, dict) else _items(value):
        if isinstance(part, str):
            pair = [word.strip() for word in part.split(separator, 1)]
        else:
            pair = [*next(iter(part.items()))] if isinstance(part, dict) and len(part) == 1 else _items(part)
        if len(pair) != 2 or not all(isinstance(word, (str, int, float)) and word != "" for word in pair):
            raise ValueError(f"{part!r} is not of the form {example!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _items(value: Any) -> list[Any]:
    """The items of a list or tuple; of anything else the one item that it is."""
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _number(value: Any, form: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number in {form}") from None


def parse_bits(value: Any) -> int | None:
    """Those of weights that are kept in fewer than they have: 4 alone is known."""
    bits = _none_word(value)
    if bits is not None and str(bits) != "4":
        raise ValueError(f"{value!r} is no number of bits that is known; write 4, or none")
    return None if bits is None else 4


def parse_workers(value: Any) -> int | str:
    """`auto` or a number of threads."""
    text = str(value).strip().lower()
    if text == "auto":
        return text
    if not re.fullmatch("[0-9]{1,4}", text):
        raise ValueError(f"{value!r} is not a number of threads; write auto, 0 or 4")
    return int(text)


def _none_word(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _written(value: Any) -> Any:
    return None if value is None else str(value)


def _written_size(value: tuple[int, int] | None) -> str | None:
    return None if value is None else f"{value[0]}x{value[1]}"


def written_pairs(separator: str) -> PlainSerializer:
    """The written form of pairs, None where there are none."""
    return PlainSerializer(lambda pairs: ",".join(f"{a}{separator}{b}" for a, b in pairs) or None)


OptionalDuration = Annotated[Duration | None, BeforeValidator(parse_duration), PlainSerializer(_written)]
OptionalCadence = Annotated[Cadence | None, BeforeValidator(parse_cadence), PlainSerializer(_written)]
Size = Annotated[tuple[int, int] | None, BeforeValidator(parse_size), PlainSerializer(_written_size)]
Limit = Annotated[float | int | None, BeforeValidator(parse_limit)]
Floats = Annotated[
    tuple[float, ...] | None, BeforeValidator(parse_floats), PlainSerializer(lambda v: v and list(v))
]
Group = Annotated[str | None, BeforeValidator(parse_group)]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names), PlainSerializer(list)]
Rates = Annotated[tuple[tuple[str, float], ...], BeforeValidator(parse_rates), written_pairs("=")]
Workers = Annotated[int | Literal["auto"], BeforeValidator(parse_workers)]
OptionalFloat = Annotated[float | None, BeforeValidator(_none_word)]
OptionalInt = Annotated[int | None, BeforeValidator(_none_word)]
Bits = Annotated[Literal[4] | None, BeforeValidator(parse_bits)]
