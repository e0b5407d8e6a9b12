"""What two runs left behind, side by side: the first thing that differs, by step and then by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from warmstart.run import layout, reader
from warmstart.run.reader import Run

_TIMES = ("seconds", "images_per_s")
_STATUS = (
    "state",
    "step",
    "best_step",
    "best_value",
    "stop_reason",
    "recovery_events",
    "rescues",
    "stages_never_begun",
)


@dataclass(frozen=True)
class Difference:
    """`where` is a file, or a row of one; `what` the field or tensor in it."""

    step: int
    where: str
    what: str
    first: str
    second: str

    def text(self) -> str:
        return f"step {self.step}, {self.where}, {self.what}: {self.first} and {self.second}"


def first_difference(first: Run, second: Run) -> Difference | None:
    """Rows (times aside) in the order of steps, then the last and the best checkpoint, then the status; None: equal."""
    return _first(
        _in_rows(name, reader.read_rows(first.path / name), reader.read_rows(second.path / name))
        for name in (layout.METRICS, layout.EVALS)
    ) or difference_in_files(first, second)


def difference_in_training(first: Run, second: Run, until: int | None = None) -> Difference | None:
    """Rows alone, up to the step `until`, without those of evaluations that were asked for afterwards."""
    return _first(
        _in_rows(name, *(training_rows(run, name, until) for run in (first, second)))
        for name in (layout.METRICS, layout.EVALS)
    )


def training_rows(run: Run, name: str, until: int | None = None) -> reader.Rows:
    """As read from the file now: the run may be in progress."""
    found = reader.read_rows(run.path / name)
    rows = [row for row in found.rows if row.get("kind") != "evaluate"]
    return reader.Rows([row for row in rows if until is None or row["step"] <= until], found.num_damaged)


def difference_in_files(first: Run, second: Run) -> Difference | None:
    """The last and the best checkpoint, then the status, of two runs that have come to their end."""
    return next(iter(_in_checkpoints(first, second)), None) or next(iter(_in_status(first, second)), None)


def _first(found: Iterable[Difference | None]) -> Difference | None:
    """Of several the one of the earliest step."""
    there = [difference for difference in found if difference is not None]
    return min(there, key=lambda difference: difference.step, default=None)


def _in_rows(name: str, first: reader.Rows, second: reader.Rows) -> Difference | None:
    for number, (one, other) in enumerate(zip_longest(first.rows, second.rows), 1):
        if one is None or other is None:
            present = one or other or {}
            words = "absent", f"a row {present.get('kind', present.get('split', ''))!r}"
            step = present["step"]
            return Difference(
                step, f"row {number} of {name}", "the row", *(words if one is None else words[::-1])
            )
        for key, left, right in _fields(one, other):
            if key not in _TIMES:
                return Difference(one["step"], f"row {number} of {name}", key, left, right)
    return None


def _in_checkpoints(first: Run, second: Run) -> Iterator[Difference]:
    last = first.pointer(layout.LAST)
    assert last is not None, "a finished run has a last checkpoint"
    for pointer in (layout.LAST, layout.BEST):
        steps = first.pointer(pointer), second.pointer(pointer)
        if steps[0] != steps[1]:
            yield Difference(last, layout.CHECKPOINTS, pointer, *(f"step {step}" for step in steps))
            return
    best = first.pointer(layout.BEST)
    for step in sorted({last} if best is None else {last, best}):
        for run in (first, second):
            damage = reader.find_damage(run.checkpoint(step))
            if damage is not None:
                yield Difference(step, str(run.checkpoint(step)), "the checkpoint", "whole", damage)
                return
        for name in (layout.MODEL, layout.STATE_TENSORS):
            yield from _in_tensors(step, first.checkpoint(step) / name, second.checkpoint(step) / name)
        yield from _in_state(step, first.checkpoint(step), second.checkpoint(step))


def _in_tensors(step: int, first: Path, second: Path) -> Iterator[Difference]:
    if first.read_bytes() == second.read_bytes():
        return
    from safetensors.torch import load_file

    one, other = load_file(first), load_file(second)
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if left is None or right is None or left.shape != right.shape or left.dtype != right.dtype:
            words = ("absent" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (left, right))
            yield Difference(step, first.name, name, *words)
        elif not left.equal(right):
            at = int((left != right).reshape(-1).int().argmax())
            values = (f"{t.reshape(-1)[at].item()!r} (element {at})" for t in (left, right))
            yield Difference(step, first.name, name, *values)
    yield Difference(step, first.name, "its description", "other bytes", "of equal tensors")


def _in_state(step: int, first: Path, second: Path) -> Iterator[Difference]:
    records = [json.loads((folder / layout.STATE).read_text(encoding="utf-8")) for folder in (first, second)]
    for key, left, right in _fields(*records):
        if key != "state.seconds":
            yield Difference(step, layout.STATE, key, left, right)


def _in_status(first: Run, second: Run) -> Iterator[Difference]:
    one, other = ({key: run.status.get(key) for key in _STATUS} for run in (first, second))
    for key, left, right in _fields(one, other):
        yield Difference(first.status["step"], layout.STATUS, key, left, right)


def _fields(first: dict[str, Any], second: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field that differs, as `section.name`, with both values."""
    for key in (*first, *(key for key in second if key not in first)):
        left, right = first.get(key, "absent"), second.get(key, "absent")
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _fields(left, right, f"{above}{key}.")
        elif left != right:
            yield f"{above}{key}", repr(left), repr(right)
