"""Runs of a benchmark that may be started again: what is finished is kept, what was interrupted goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import warmstart as ws
from warmstart.run import layout
from warmstart.run.reader import Run


def is_done(folder: Path) -> bool:
    return layout.is_run(folder) and Run(folder).status["state"] == "finished"


def finish(folder: Path, begin: Callable[..., object]) -> Run:
    """The run in `folder`: begun with `begin(output_dir=...)`, gone on with, or as it was."""
    if not layout.is_run(folder):
        shutil.rmtree(folder, ignore_errors=True)  # what was killed before it was a run
        begin(output_dir=str(folder))
    elif not is_done(folder):
        ws.resume(str(folder))
    return Run(folder)
