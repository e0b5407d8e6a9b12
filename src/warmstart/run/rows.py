"""Rows and objects as JSON in a run directory: which of them are in force, and what a key that is gone means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import UserError, listing


@dataclass(frozen=True)
class Rows:
    """The rows of a JSONL file that are in force, and how many were torn or unreadable."""

    rows: list[dict[str, Any]]
    num_damaged: int


class RunObject(dict[str, Any]):
    """A JSON object of a run's file: a key that was written and is not there means damage, not a mistake of ours."""

    def __missing__(self, key: str) -> Any:
        raise UserError(f"a file of the run is damaged: {key!r} is missing where {listing(self, 5)} stand")


_TAIL = 64_000  # bytes, of rows of a few hundred
# `json.loads` with a hook would make a decoder for each row, which is half of the time.
_DECODE = json.JSONDecoder(object_hook=RunObject).decode


def read_rows(path: Path) -> Rows:
    """Rows in force: rows `kind: resume` and `kind: rescue` take back the rows of later steps that stand before them.

    A rescue itself is in force, unless the run is resumed from a checkpoint that is older than it: `rescues` of the
    resume's row is how many the checkpoint knows.
    """
    rows: list[dict[str, Any]] = []
    num_damaged = 0
    if not path.exists():
        return Rows(rows, 0)
    for row in _parsed([line for line in path.read_bytes().split(b"\n") if line.strip()]):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            num_damaged += 1
        else:
            if row.get("kind") in ("resume", "rescue"):
                rows = _up_to(rows, row["step"], row.get("rescues"))
            if row.get("kind") != "resume":
                rows.append(row)
    return Rows(rows, num_damaged)


def last_row(path: Path) -> dict[str, Any] | None:
    """The last row in force: from the end of the file alone, unless rows were taken back there."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 :]
    for line in reversed(lines):
        row = _decoded(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            if row.get("kind") == "resume":
                break
            return row
    rows = read_rows(path).rows
    return rows[-1] if rows else None


def _parsed(lines: list[bytes]) -> list[Any]:
    """What each line holds, None where it is damaged. All at once where none is; two torn ones may look like one row,
    so they are counted."""
    found = _decoded(b"[" + b",".join(lines) + b"]")
    if isinstance(found, list) and len(found) == len(lines):
        return found
    return [_decoded(line) for line in lines]


def _decoded(text: bytes) -> Any:
    try:
        return _DECODE(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def _up_to(rows: list[dict[str, Any]], step: int, num_rescues: int | None) -> list[dict[str, Any]]:
    """The rows up to a step, with the first `num_rescues` rescues (None: all)."""
    rescues = [row for row in rows if row.get("kind") == "rescue"][:num_rescues]
    known = {id(row) for row in rescues}
    return [row for row in rows if (id(row) in known if row.get("kind") == "rescue" else row["step"] <= step)]
