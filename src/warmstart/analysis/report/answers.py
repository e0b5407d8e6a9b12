"""What the best checkpoint answers, as the run's last evaluation kept it: classes, confusion, start beside best.

Imports no torch. Shapes: N samples, K classes.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.change import Change
from warmstart.analysis.report.blocks import Bar, Cell, Confusion, Table, Toned
from warmstart.analysis.report.numbers import plain, signed
from warmstart.analysis.report.words import Words
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.shown import METRICS

_MOST_IN_MATRIX, _NUM_FREQUENT = 24, 10
_MOST_ROWS = 40  # of classes; of more, so many of the worst and half as many of the best
_MAIN = ("f1", "ap", "iou")  # by which classes are sorted: the first that they have, of sets AP
_COUNTS = ("support", "pixels", "images")


@dataclass(frozen=True)
class Kept:
    """An evaluation of a run's best step (without val its last) that is kept in `folder`; `results` is its JSON."""

    folder: Path
    split: str
    step: int
    results: dict[str, Any]

    @property
    def num(self) -> int:
        return int(self.results["num_samples"])


def kept_evaluation(run: Run) -> Kept | None:
    """Of test, else val, else train, at the best step, without val at the last; None where nobody has evaluated it.

    Raises:
        UserError: it is there, and damaged.
    """
    best, last = run.pointer(layout.BEST), run.pointer(layout.LAST)
    step = last if best is None else best
    if step is None:
        return None
    for split in ("test", "val", "train"):
        folder = run.path / layout.EVALUATIONS / f"{layout.of_task(split, run.task)}@{step}"
        file = folder / layout.RESULTS
        if file.is_file():
            try:
                results = json.loads(file.read_text(encoding="utf-8"))
                rows = [{"name": row["name"], **row} for row in results["per_class"]]
                if not rows:
                    raise ValueError("no class")
                return Kept(folder, split, step, {**results, "per_class": rows})
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"{file} is damaged",
                    "the JSON that was written",
                    f"`warmstart evaluate {run.path}` makes it anew",
                ) from None
    return None


def class_table(kept: Kept, words: Words) -> Table:
    """A row per class, the worst first where there are more than two."""
    rows = kept.results["per_class"]
    names = [name for name in rows[0] if name != "name"]
    main = next(name for name in ("ap", *_MAIN) if name in names)
    notes = [words("measured_on", step=kept.step, split=words.known(kept.split), num=plain(kept.num))]
    if len(rows) > 2:
        rows = sorted(rows, key=lambda row: -1.0 if row[main] is None else row[main])
        notes.append(words("worst_first"))
    if len(rows) > _MOST_ROWS:
        best = _MOST_ROWS // 3
        left_out = len(rows) - _MOST_ROWS
        rows = [*rows[: _MOST_ROWS - best], *rows[-best:]]
        notes.append(words("between", num=left_out, file=layout.RESULTS))
    cells = [tuple(_class_cell(row, name, main) for name in ("name", *names)) for row in rows]
    columns = (words("label" if "ap" in names else "class"), *(_column(name, names, words) for name in names))
    means = kept.results.get("averages") or {}
    totals = [
        (words.known(kind), *(plain(mean[name]) if name in mean else "" for name in names))
        for kind, mean in means.items()
    ]
    return Table(columns, tuple(cells), totals=tuple(totals), note=" ".join(notes))


def _column(name: str, names: list[str], words: Words) -> str:
    return words("images_with") if name == "images" else words.known(name)


def _class_cell(row: dict[str, Any], name: str, main: str) -> Cell:
    value = row[name]
    if name == main:
        return Bar(plain(value), value or 0.0, "plain")
    return plain(int(value) if name in _COUNTS else value)


def confusion(kept: Kept, words: Words) -> Confusion | None:
    """Of one class per image; None of sets and masks. UserError where the table is damaged."""
    file = kept.folder / layout.CONFUSION_TABLE
    if not file.is_file():
        return None
    try:
        with file.open(encoding="utf-8", newline="") as content:
            head, *rows = csv.reader(content)
        matrix = np.array([[int(cell) for cell in row[1:]] for row in rows], dtype=np.int64)
        assert_square = matrix.shape == (len(head) - 1, len(head) - 1)
    except (ValueError, csv.Error):
        assert_square = False
    if not assert_square:
        raise UserError(f"{file} is damaged", "the table that was written")
    classes = tuple(head[1:])
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = [place for place in np.argsort(-wrong, axis=None, kind="stable") if wrong.flat[place]]
    pairs = [divmod(int(place), len(classes)) for place in order[:_NUM_FREQUENT]]
    frequent = tuple((classes[i], classes[j], int(matrix[i, j]), float(shares[i, j])) for i, j in pairs)
    is_small = len(classes) <= _MOST_IN_MATRIX
    cells = [
        tuple((int(c), float(s)) for c, s in zip(counts, parts, strict=True))
        for counts, parts in zip(matrix, shares, strict=True)
    ]
    note = words("confusion_note")
    if not is_small:
        note = words("too_many_classes", num=len(classes), file=layout.CONFUSION_TABLE)
    said = {name: words(name) for name in ("target", "answer", "frequent")} | {"note": note}
    return Confusion(classes, tuple(cells) if is_small else (), frequent if len(classes) > 2 else (), said)


def metrics_table(gains: list[dict[str, Any]], words: Words) -> Table | None:
    """A row per metric, with start, best and change on each split; None where there are no gains."""
    names = [name for name in METRICS if any(gain["best"].get(name) is not None for gain in gains)]
    rows = []
    for name in names:
        cells: list[Cell] = [words.known(name)]
        for gain in gains:
            before, after = gain["start"].get(name), gain["best"].get(name)
            cells += [plain(before), plain(after), _difference(name, before, after, gain)]
        rows.append(tuple(cells))
    heads = [f"{words.known(gain['split'])}: {words('start')}" for gain in gains]
    columns = [column for head in heads for column in (head, words("best"), words("change"))]
    return Table((words("metric"), *columns), tuple(rows)) if rows else None


def _difference(name: str, before: float | None, after: float | None, gain: dict[str, Any]) -> Cell:
    """In green or red where the paired test, which is of one metric, tells them apart: the others may be noise."""
    if before is None or after is None:
        return ""
    in_force = f"{gain['metric']}_at_threshold"
    is_tested = name == (in_force if in_force in gain["best"] else gain["metric"])
    direction = Change.of(gain).direction if is_tested else 0
    return Toned(signed(after - before), "good" if direction > 0 else "bad" if direction < 0 else "plain")
