"""On a CPU, keep the memory that a step has freed for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # mallopt takes a C int
# Where glibc's own adjustment of both ends.
_USUAL_MMAP, _USUAL_TRIM = 32 * 2**20, 64 * 2**20


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """While it lasts, freed memory stays with the process; afterwards it goes back to the system.

    glibc returns large pieces at once, and the top of its heap whenever 64 MB of it are free: with activations
    of megabytes that is in every step, and the system then clears each page again before the next step may
    have it. bench/allocator.py measures what that costs. Nothing happens on other devices, without
    glibc, and where the user has set its variables.
    """
    libc = _libc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    # Older versions refuse more than 32 MB for the first.
    if not libc.mallopt(_MMAP_THRESHOLD, _LARGEST):
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        libc.malloc_trim(0)


def give_back() -> None:
    """Freed memory that glibc holds for later goes back to the system, so that what is in use can be counted."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return None if is_set or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)
