"""Peak memory of a piece of work beyond what was in use before it, and how much memory there is."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from warmstart.data.cache_folder import ram
from warmstart.inference.allocator import give_back

_SECONDS = 0.002  # between two looks at a process; shorter than any step that matters
_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")  # Linux


class MemoryWatch:
    """`added` is known when the work is over: bytes, or None where nothing tells."""

    def __init__(self) -> None:
        self.added: int | None = None


@contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryWatch]:
    """Measure what the work inside takes: of CUDA's allocator, or of this process as a thread sees it every 2 ms.

    The process's own high-water mark does not do: it is that of its whole life. Without CUDA and Linux nothing tells.
    """
    watch = MemoryWatch()
    gc.collect()  # the models of earlier work hang in rings of references
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield watch
        watch.added = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu" and _STATM.exists():
        give_back()
        before = highest = _resident()
        is_over = threading.Event()

        def look() -> None:
            nonlocal highest
            while not is_over.wait(_SECONDS):
                highest = max(highest, _resident())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            is_over.set()
            thread.join()
        watch.added = max(highest, _resident()) - before
    else:
        yield watch


def free_memory(device: torch.device) -> int | None:
    """Bytes of the device that are free, and of RAM on a CPU; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return ram() or None if device.type == "cpu" else None


def _resident() -> int:
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
