"""What a piece of work takes is what it has on top of what was there, whatever the process had before."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from warmstart.inference import memory_watch
from warmstart.inference.memory_watch import free_memory, watch_memory

CPU = torch.device("cpu")
MB = 2**20
linux = pytest.mark.skipif(not memory_watch._STATM.exists(), reason="needs /proc")


def held(num_mb: int, seconds: float = 0.05) -> None:
    """Have so much memory for a while, in pieces of 8 MB that the system gives back at once or that malloc keeps."""
    pieces = [np.ones(MB, np.float64) for _ in range(num_mb // 8)]
    time.sleep(seconds)
    assert len(pieces) == num_mb // 8


@linux
def test_the_peak_counts_and_not_what_is_left() -> None:
    with watch_memory(CPU) as watch:
        held(240)
    assert watch.added is not None and 230 * MB < watch.added < 280 * MB


@linux
def test_what_was_there_before_does_not_count_nor_does_an_earlier_peak() -> None:
    held(400)
    kept = np.ones(10 * MB, np.float64)
    with watch_memory(CPU) as watch:
        held(80)
    assert watch.added is not None and 70 * MB < watch.added < 120 * MB
    assert kept.sum() == 10 * MB


@linux
def test_the_watch_ends_with_an_error() -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="inside"), watch_memory(CPU) as watch:
        raise RuntimeError("inside")
    assert threading.active_count() == before and watch.added is None


def test_where_nothing_tells_nothing_is_told() -> None:
    with watch_memory(torch.device("meta")) as watch:
        pass
    assert watch.added is None and free_memory(torch.device("meta")) is None


@linux
def test_free_memory_is_what_the_system_says() -> None:
    found = free_memory(CPU)
    lines = memory_watch._MEMINFO.read_text().splitlines()
    (total,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert found is not None and 0 < found <= total


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocator_tells() -> None:
    device = torch.device("cuda")
    kept = torch.ones(30 * MB, device=device)
    with watch_memory(device) as watch:
        torch.ones(100 * MB, dtype=torch.uint8, device=device)
    assert watch.added == 100 * MB and kept.sum() == 30 * MB
    assert 0 < (free_memory(device) or 0) <= torch.cuda.get_device_properties(device).total_memory
