"""A folder of runs, each with the verdict of its diagnosis, by rows and records: no images, no answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.analysis.diagnose.findings import Diagnosis
from warmstart.analysis.diagnose.rules import diagnose_folder
from warmstart.console import table
from warmstart.run import layout
from warmstart.run.reader import find_runs
from warmstart.shown import Shown


class Overview(Shown, list[dict[str, Any]]):
    """One row per run: `run`, `state`, `verdict`, `findings` (their names) and `scores`."""

    def text(self) -> str:
        rows = [(row["run"], row["state"], row["verdict"]) for row in self]
        return table("", ("run", "state", "verdict"), rows, left=3)

    def to_json(self) -> dict[str, Any]:
        return {"runs": list(self)}


def is_folder_of_runs(path: str) -> bool:
    root = Path(path)
    return root.is_dir() and not layout.is_run(root) and any(layout.is_run(entry) for entry in root.iterdir())


def overview(path: str) -> Overview:
    """The runs directly below a folder, in the order of their names."""
    return Overview(map(_row, diagnose_folder(find_runs(path))))


def _row(found: Diagnosis | tuple[str, str]) -> dict[str, Any]:
    if isinstance(found, tuple):
        return {"run": found[0], "state": "-", "verdict": found[1], "findings": [], "scores": []}
    return {
        "run": found.name,
        "state": found.state,
        "verdict": found.verdict,
        "findings": [finding.id for finding in found.findings],
        "scores": [finding.score for finding in found.findings],
    }
