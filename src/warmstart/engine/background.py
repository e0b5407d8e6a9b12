"""One task at a time beside the loop: what is written to disk must not make the next step wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from warmstart.engine.state import NotFinite


class Background:
    """Runs tasks one after the other on a thread of its own; the error of a task is raised by the next call.

    The loop asks with `check` after every step, so that a full disk is told at once.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="warmstart-save")
        self._pending: Future[None] | None = None

    def run(self, task: Callable[[], None]) -> None:
        """Start a task when the one before it is done."""
        self.wait()
        self._pending = self._pool.submit(task)

    def check(self) -> None:
        """Raise what a finished task has raised, without waiting for one that is not."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is left to do; raises what the last task raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the last task in any case; where the loop itself has failed, that error is the one to tell.

        Except where it would be rescued: the rescue goes back to a checkpoint that may not have been written.
        """
        self._pool.shutdown()
        if value is None or isinstance(value, NotFinite):
            self.wait()
