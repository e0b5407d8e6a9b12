"""Which runs a model went through, back to the weights that the first of them was started from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.inference.restore import Restored
from warmstart.run import layout
from warmstart.run.reader import Run

BEGINNINGS = ("file", "pretrained", "random", "object")


@dataclass(frozen=True)
class Lineage:
    """`runs` from the last to the first; `source` is what the first was started from: `kind`, `path`, `sha256`."""

    runs: tuple[Run, ...]
    source: dict[str, Any]


def lineage_of(restored: Restored) -> Lineage:
    """A run that lies no longer where it was ends the line: its file of weights is then the source."""
    run, runs = restored.reference.run, []
    source: dict[str, Any] = dict(restored.built.source)
    while run is not None:
        runs.append(run)
        source = run.resolved["model"]["source"]
        run = _run_before(run)
    return Lineage(tuple(runs), source)


def _run_before(run: Run) -> Run | None:
    """The run whose checkpoint this one was started from, or that it was made of without training."""
    source, parent = run.resolved["model"]["source"], run.resolved["parent"]
    path = Path(source["path"] or "")
    if source["kind"] == "file" and layout.checkpoint_step(path.parent.name) is not None:
        folder = path.parent.parent.parent
    elif source["kind"] not in BEGINNINGS and parent is not None:
        folder = Path(parent["run"])
    else:
        return None
    return Run(folder) if layout.is_run(folder) else None


def licence_of(restored: Restored) -> str | None:
    """Of the pretrained weights at the beginning of the line; None: nobody stated one."""
    stated = [run.resolved["model"]["licence"] for run in lineage_of(restored).runs]
    return next((licence for licence in (restored.built.licence, *stated) if licence), None)
