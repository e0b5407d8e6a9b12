"""Threads that decode: the libraries release the interpreter's lock, so that threads suffice."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import cv2

from warmstart.data.samples import Samples

_MAX_THREADS = 8  # more threads wait for each other's Python


def resolve_workers(
    setting: int | str, samples: Samples, has_accelerator: bool = False, num_processes: int = 1
) -> int:
    """`--workers` as a number; `auto` leaves two cores to the model, and needs none for decoded pixels.

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
