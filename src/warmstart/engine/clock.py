"""Where a run's time goes: every second belongs to exactly one activity."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

STEPS, DATA, EVALUATION, SAVING, FEATURES = "steps", "data", "evaluation", "saving", "features"


class Clock:
    """Seconds by activity; whatever is not said to be something else is steps (forward, backward, optimizer).

    On an accelerator steps are queued: what is waited for at the end of a row counts as steps, too.
    """

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.seconds = dict.fromkeys((STEPS, DATA, EVALUATION, SAVING, FEATURES), 0.0) | (before or {})
        self._activity, self._since = STEPS, time.perf_counter()

    @contextmanager
    def part(self, activity: str) -> Iterator[None]:
        """While it lasts the time belongs to `activity`; a part inside a part interrupts it."""
        outer = self._switch(activity)
        try:
            yield
        finally:
            self._switch(outer)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each is there belongs to the data."""
        iterator = iter(batches)
        while True:
            with self.part(DATA):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def to_json(self) -> dict[str, float]:
        self._switch(self._activity)
        return {activity: round(seconds, 3) for activity, seconds in self.seconds.items()}

    def _switch(self, activity: str) -> str:
        now = time.perf_counter()
        self.seconds[self._activity] += now - self._since
        before, self._activity, self._since = self._activity, activity, now
        return before
