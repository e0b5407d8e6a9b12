"""Written forms of what is said about index masks: ids for ids, ids for colours, pairs of classes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from warmstart.config.values import parse_pairs, written_pairs

# Of section data.
MASK_LEAVES = (
    "masks",
    "mask_classes",
    "ignore",
    "mask_remap",
    "mask_colours",
    "flip_pairs",
)
# What says how labels are read; data to measure on have no mirror images.
LABEL_LEAVES = ("label_columns", *(leaf for leaf in MASK_LEAVES if leaf != "flip_pairs"))
_LARGEST = 65535
_COLOUR = re.compile(r"(\d{1,3})[. ]+(\d{1,3})[. ]+(\d{1,3})", re.ASCII)


def parse_remap(value: Any) -> tuple[tuple[int, int], ...]:
    """`11=255,12=3` (id in the files = id in training), a mapping, or a list of pairs."""
    pairs = tuple((_whole(old), _id(new)) for old, new in parse_pairs(value, "=", "11=255"))
    _check_once([old for old, _ in pairs], value)
    return pairs


def parse_colours(value: Any) -> str | None:
    """`128.64.128=0,0.0.142=1` (red.green.blue=id), a mapping, or the name of a file, which is not read here."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
        return None
    if isinstance(value, str) and "=" not in value:
        return value.strip()
    pairs = [
        (_colour(str(colour)), _id(number)) for colour, number in parse_pairs(value, "=", "128.64.128=0")
    ]
    _check_once([colour for colour, _ in pairs], value)
    return ",".join(f"{'.'.join(map(str, colour))}={number}" for colour, number in pairs)


def colour_table(written: str) -> dict[tuple[int, int, int], int]:
    """The colours and ids of what `parse_colours` has made of a table."""
    return {_colour(colour): _id(number) for colour, number in parse_pairs(written, "=", "128.64.128=0")}


def is_file_of_colours(colours: str | None) -> bool:
    return colours is not None and "=" not in colours


def parse_flip_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """`left_eye:right_eye,3:4`: classes, by name or id, that are each other's mirror image."""
    pairs = tuple(
        (str(left).strip(), str(right).strip())
        for left, right in parse_pairs(value, ":", "left_eye:right_eye")
    )
    _check_once([name for pair in pairs for name in pair], value)
    return pairs


def _whole(value: Any) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", str(value).strip()):
        raise ValueError(f"{value!r} is not an id; write 11=255")
    return int(value)


def _id(value: Any) -> int:
    number = _whole(value)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"{number} is not an id from 0 to {_LARGEST}")
    return number


def _colour(written: str) -> tuple[int, int, int]:
    match = _COLOUR.fullmatch(written.strip())
    if match is None or max(map(int, match.groups())) > 255:
        raise ValueError(f"{written!r} is not a colour; write red.green.blue, each 0 to 255")
    red, green, blue = map(int, match.groups())
    return red, green, blue


def _check_once(items: list[Any], value: Any) -> None:
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"{value!r} names {twice[0]} twice")


MaskRemap = Annotated[tuple[tuple[int, int], ...], BeforeValidator(parse_remap), written_pairs("=")]
MaskColours = Annotated[str | None, BeforeValidator(parse_colours)]
FlipPairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(parse_flip_pairs), written_pairs(":")]
