"""That trials were compared on val is counted beside them, for the verdicts of `compare`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from warmstart.analysis.compare.looks import count_table
from warmstart.analysis.compare.sides import Side
from warmstart.run import layout
from warmstart.run.reader import Run


def count_looks(runs: Iterable[Path]) -> None:
    """So many were seen side by side, in each of their tasks; episodes have no val that `compare` could ask.

    What is no run, or has validated nothing, was not seen.
    """
    found = [Run(run) for run in runs if layout.is_run(run)]
    seen = [
        run for run in found if run.pointer(layout.BEST) is not None and run.resolved.get("episodes") is None
    ]
    if len(seen) < 2:
        return
    for task in [entry["name"] for entry in seen[0].tasks] or [None]:
        sides = [Side(str(run.path), run if task is None else run.of_task(task)) for run in seen]
        count_table(sides, "val", str(sides[-1].data["fingerprint"]))
