"""warmstart commands in processes of their own, as they are in life."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from warmstart.errors import UserError

LOOKS_EVERY = 0.001  # seconds; small models take steps as short as that


def start(words: Sequence[str], told: Path) -> subprocess.Popen[bytes]:
    """`warmstart WORDS`. What it says goes to the file `told`: a full pipe would hold it up."""
    with told.open("wb") as stream:
        command = [sys.executable, "-m", "warmstart", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream)


class Process:
    """A command that runs beside this process."""

    def __init__(self, words: Sequence[str], told: Path) -> None:
        self._process, self._told = start(words, told), told

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, is_enough: Callable[[], bool], pause: float = LOOKS_EVERY) -> bool:
        """Until it has ended, or `is_enough()`; whether it still runs."""
        while self.is_running and not is_enough():
            time.sleep(pause)
        return self.is_running

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        while (code := self._process.poll()) is None:
            time.sleep(LOOKS_EVERY)
        return code

    def kill(self) -> int:
        """End it without warning. Its exit code (on Windows 1); where it was over before, its own."""
        self._process.kill()
        return self.wait()

    def stop(self) -> None:
        """Ask it to save and end; on Windows, which has no such signal, it is killed."""
        self._process.terminate()
        self.wait()

    def reason(self) -> str:
        """Of its error, as it was printed."""
        text = self._told.read_text(encoding="utf-8", errors="replace")
        return text.rpartition("error: ")[2].strip() or text[-2000:].strip()


@contextmanager
def running(*words: str) -> Iterator[Process]:
    """The command; it does not outlive the block."""
    with tempfile.TemporaryDirectory(prefix="warmstart-process-") as folder:
        process = Process(words, Path(folder) / "told.txt")
        try:
            yield process
        finally:
            process.kill()


def run_command(what: str, *words: str) -> None:
    """To its end. UserError: it ended with an error, which is that of `what`."""
    with running(*words) as process:
        if process.wait() != 0:
            raise UserError(f"{what} failed: {process.reason()}", "settings that train")
