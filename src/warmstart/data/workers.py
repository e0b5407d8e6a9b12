"""Threads that decode: the libraries release the interpreter's lock, so that threads suffice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2

from warmstart.data.samples import Samples

_MAX_THREADS = 8  # more threads wait for each other's Python
_CANDIDATES = (0, 1, 2, 4, 8)
TIE = 0.03  # a gain that is not worth more threads, nor can be told from chance


@dataclass(frozen=True)
class WorkersChoice:
    """The number of decoding threads; `origin` is given, rule or measured (images per second by number)."""

    value: int
    origin: str
    images_per_second: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def fastest(cls, speeds: Mapping[int, float]) -> WorkersChoice:
        """Of measured images per second by number of threads; the fewest of those that are equally fast."""
        enough = max(speeds.values()) * (1 - TIE)
        value = min(number for number, speed in speeds.items() if speed >= enough)
        return cls(value, "measured", {str(number): round(speed, 1) for number, speed in speeds.items()})


def candidates(samples: Samples, has_accelerator: bool, num_processes: int) -> tuple[int, ...]:
    """Numbers of threads that are worth a measurement, from few to many; none where there is nothing to choose."""
    cores = num_cores() // num_processes
    if cores < 2 or (samples.pixels.decoded and not has_accelerator):
        return ()
    return tuple(number for number in _CANDIDATES if number <= cores)


def resolve_workers(
    setting: int | str, samples: Samples, has_accelerator: bool = False, num_processes: int = 1
) -> int:
    """`--workers` as a number without a measurement; `auto` leaves two cores to the model, and needs none for
    decoded pixels.

    With an accelerator there is time to prepare even those ahead. `num_processes` on this machine share
    its cores.
    """
    if setting != "auto":
        return int(setting)
    if samples.pixels.decoded and not has_accelerator:
        return 0
    return max(0, min(_MAX_THREADS, num_cores() // num_processes - 2))


def scan_workers(setting: int | str) -> int:
    """Threads while nothing else runs: all cores by default."""
    return min(_MAX_THREADS, num_cores()) if setting == "auto" else int(setting)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def calm_opencv() -> None:
    """From now on OpenCV adds no threads of its own: they would compete with torch's, which costs a sixth of a step."""
    cv2.setNumThreads(1)


def decode_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of decoding threads."""
    calm_opencv()
    return ThreadPoolExecutor(workers, thread_name_prefix="warmstart-decode")
