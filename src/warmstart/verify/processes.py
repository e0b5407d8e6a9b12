"""warmstart commands in processes of their own, as they are in life."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from warmstart.errors import UserError

LOOKS_EVERY = 0.001  # seconds; small models take steps as short as that


class Process:
    """A command that runs beside this process. What it prints is kept in a file: a full pipe would hold it up."""

    def __init__(self, verb: str, *arguments: str) -> None:
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "warmstart", verb, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=self._told,
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        return self._process.wait()

    def kill(self) -> int:
        """End it without warning, and wait. Its exit code; where it was over before, its own."""
        self._process.kill()  # on Windows that is an exit code of 1
        return self._process.wait()

    def stop(self) -> None:
        """Ask it to save and end, and wait; on Windows, which has no such signal, it is killed."""
        self._process.terminate()
        self._process.wait()

    def wait_until(self, is_enough: Callable[[], bool], pause: float = LOOKS_EVERY) -> bool:
        """Until it has ended, or `is_enough()`; whether it still runs."""
        while self.is_running and not is_enough():
            time.sleep(pause)
        return self.is_running

    def reason(self) -> str:
        """Of its error, as it was printed."""
        self._told.seek(0)
        text = self._told.read().decode("utf-8", "replace")
        return text.rpartition("error: ")[2].strip() or text[-2000:].strip()

    def close(self) -> None:
        self.kill()
        self._told.close()


@contextmanager
def running(verb: str, *arguments: str) -> Iterator[Process]:
    """The command; it does not outlive the block."""
    process = Process(verb, *arguments)
    try:
        yield process
    finally:
        process.close()


def run_command(what: str, verb: str, *arguments: str) -> None:
    """To its end. UserError: it ended with an error, which is that of `what`."""
    with running(verb, *arguments) as process:
        if process.wait() != 0:
            raise UserError(f"{what} failed: {process.reason()}", "settings that train")
