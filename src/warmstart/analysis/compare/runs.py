"""Several runs side by side: one row each, and their curves in one picture. Reads rows only, and imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmstart.analysis.compare.history import best_of, method_of, metric_of
from warmstart.analysis.compare.looks import count_table
from warmstart.analysis.compare.sides import Side
from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import table
from warmstart.errors import UserError, listing
from warmstart.shown import Shown

COLUMNS = ("experiment", "best", "final", "gap", "epochs to best", "rate", "method")


@dataclass(frozen=True)
class RunTable(Shown):
    """One row per run, the best first; `curves` are (name, [(epoch, value)]) of val, in the order of the rows."""

    metric: str
    rows: list[dict[str, Any]]
    curves: list[tuple[str, list[tuple[float, float]]]] = field(repr=False)
    notes: tuple[str, ...] = ()
    folder: str | None = None

    passed = True  # nothing is required of a table

    def text(self) -> str:
        best = self.rows[0]
        lines = [
            f"best of {len(self.rows)} on val: {best['experiment']}, {self.metric} {_told(best['best'])}",
            f"The best of {len(self.rows)} looks better than it is: compare two of them on test for a verdict.",
            *(f"note: {note}" for note in self.notes),
            "",
            table(f"{self.metric} of val", COLUMNS, [[row[name] for name in COLUMNS] for row in self.rows]),
            "",
            f"curves: {self.folder or 'not drawn; pass --output-dir'}",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "question": "runs",
            "metric": self.metric,
            "runs": self.rows,
            "curves": [{"experiment": name, "points": points} for name, points in self.curves],
            "notes": list(self.notes),
            "folder": self.folder,
        }

    @property
    def pictures(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.png")) if self.folder is not None else []


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def compare_runs(sides: Sequence[Side]) -> RunTable:
    """The table of runs of one task; each is measured on its own val, in the metric of the first.

    Raises:
        UserError: a file among them, different tasks or classes, or no run that has validated.
    """
    files = [side.label for side in sides if side.run is None]
    if files:
        raise UserError(
            f"{listing(files)}: no run, and so without rows",
            "run directories: more than two models are compared by their rows",
            "compare two models at a time for a verdict on samples",
        )
    first = sides[0]
    for side in sides[1:]:
        if side.kind != first.kind:
            raise UserError(f"{first.label} is {first.kind}, {side.label} is {side.kind}", "runs of one task")
    lost = {name for side in sides for name in set(side.data["classes"]) ^ set(first.data["classes"])}
    if lost:
        raise UserError(
            f"the runs have different classes: {listing(sorted(lost), 5)}", "runs of the same classes"
        )
    metric = metric_of(first)
    found = [(side, _row(side, metric)) for side in sides]
    if all(row["best"] is None for _, row in found):
        raise UserError(f"none of the runs has measured {metric} on val yet", "runs that have validated")
    sign = SELECTION_METRICS[metric]
    found.sort(key=lambda pair: -sign * pair[1]["best"] if pair[1]["best"] is not None else float("inf"))
    prints = {side.data.get("fingerprint") for side in sides}
    notes = [note for side in sides for note in side.notes]
    if len(prints) > 1:
        notes.append(
            f"the runs are on {len(prints)} different data: their numbers cannot be set side by side"
        )
    else:
        count_table(list(sides), "val", str(prints.pop()))
    curves = [(row["experiment"], _curve(side, metric)) for side, row in found]
    return RunTable(metric, [row for _, row in found], curves, tuple(notes))


def _row(side: Side, metric: str) -> dict[str, Any]:
    """best and final of val, gap (train less val, at the best), epochs, the rate in force, method."""
    assert side.run is not None
    rows = side.validations()
    best, last = best_of(rows, metric), rows[-1] if rows else {}
    train = next((row for row in side.validations("train") if row["step"] == best.get("step")), {})
    known = best.get(metric) is not None and train.get(metric) is not None
    return {
        "experiment": side.run.path.name,
        "best": best.get(metric),
        "final": last.get(metric),
        "gap": train[metric] - best[metric] if known else None,
        "epochs to best": best.get("epoch"),
        "rate": side.run.resolved["lr"],
        "method": method_of(side),
        "run": str(side.run.path),
        "best_step": best.get("step"),
        "state": side.run.status.get("state"),
    }


def _curve(side: Side, metric: str) -> list[tuple[float, float]]:
    return [
        (row["epoch"], row[metric])
        for row in side.validations()
        if row.get(metric) is not None and row.get("epoch") is not None
    ]
