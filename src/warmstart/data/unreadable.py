"""Images that can no longer be read while a run trains: tried twice, then left out, named and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from warmstart.console import log
from warmstart.data.decode import CorruptImage, reason_of
from warmstart.errors import UserError, listing

T = TypeVar("T")


class Unreadable:
    """Those of one run, by id with the reason; `known` are from before it was resumed. Threads share it."""

    def __init__(self, num_images: int, max_corrupt: float, known: Mapping[str, str] | None = None) -> None:
        self._most, self._share = int(max_corrupt * num_images), max_corrupt
        self.reasons: dict[str, str] = dict(known or {})
        self._lock = threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Leave out one more.

        Raises:
            UserError: more than --max-corrupt of all images; then it is the disk, and not the images.
        """
        with self._lock:
            is_new = name not in self.reasons
            self.reasons[name] = reason
            num = len(self.reasons)
        if num > self._most:
            raise UserError(
                f"{num} training image{'s' if num > 1 else ''} can no longer be read: "
                f"{listing(self.reasons, 4)} ({reason})",
                f"at most {self._share:g} of all ({self._most})",
                "restore the files, then resume the run",
            )
        if is_new:
            log.warning(
                "%s can no longer be read (%s): it is left out of its batches (%d of at most %d). The run is another "
                "one than with this image",
                name,
                reason,
                num,
                self._most,
            )

    def so_far(self) -> dict[str, str]:
        """A copy, which no thread changes."""
        with self._lock:
            return dict(self.reasons)


def read_twice(name: str, read: Callable[[], T]) -> T:
    """What `read` gives, at the second try if the first one fails.

    Raises:
        CorruptImage: both tries failed, whatever the reader died of.
    """
    for is_last in (False, True):
        try:
            return read()
        except Exception as error:
            reason = error.reason if isinstance(error, CorruptImage) else reason_of(error)
            if is_last:
                raise CorruptImage(reason) from error
            log.warning("%s cannot be read (%s): once more", name, reason)
    raise AssertionError("the second try returns or raises")
