"""How a run begins, where nobody else is writing it."""

from __future__ import annotations

import os
import time

from warmstart.console import log
from warmstart.engine.checkpoint import Saved
from warmstart.engine.checks import high_rate
from warmstart.engine.job import Job
from warmstart.engine.prepare import Prepared
from warmstart.engine.state import TrainState
from warmstart.errors import UserError
from warmstart.run import layout, reader


class Beginning:
    """How a new run begins: at step 0, with nothing but weights. `continuing/continue_run.py` knows another."""

    def steps_done(self, steps_per_epoch: int) -> int:
        """The step that the run begins at."""
        return 0

    def complete(self, prepared: Prepared) -> Prepared:
        """What the first process adds to the job and its record before anything is written."""
        return prepared

    def announce(self, prepared: Prepared) -> None:
        """What is said beside the plan."""
        for warning in high_rate(prepared.job):
            log.warning(warning)

    def write(self, prepared: Prepared) -> None:
        """Files of the run beside those that every run has."""

    def state(self, job: Job) -> tuple[TrainState, Saved | None]:
        """Where the loop begins, and what it takes over; every process asks alike."""
        return TrainState(), None


def check_stopped(run: reader.Run) -> None:
    """UserError where another process is still writing the run; one that is known to be gone is none."""
    status = run.status
    if status["state"] != "running" or status.get("pid") == os.getpid():
        return
    written = (run.path / name for name in (layout.STATUS, layout.METRICS, layout.LOG))
    minutes = (time.time() - max(path.stat().st_mtime for path in written if path.exists())) / 60
    raise UserError(
        f"{run.path} is still running (process {status.get('pid')} on {status.get('host')}); it last wrote "
        f"{minutes:.0f} minutes ago",
        "a run that has stopped",
        f"wait for it; or, if {status.get('host')} or that process is gone for certain, remove "
        f"{run.path / layout.STATUS}, and then the same command works: nothing else is lost",
    )
