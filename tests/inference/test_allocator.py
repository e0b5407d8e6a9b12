"""Memory that a step has freed is there for the next one, without the system clearing it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

# Page faults of ten blocks of 48 MB, one after the other, before, within and after; and memory held at the end.
SCRIPT = """
import resource, torch
from pathlib import Path
from warmstart.inference.allocator import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(12 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(Path("/proc/self/statm").read_text().split()[1])

start = faults()
with kept_memory(torch.device("cpu")):
    faults()  # the heap grows a few times before it holds enough
    within = faults()
    kept = held()
print(start, within, faults(), kept - held())
"""


def measure(**variables: str) -> list[int]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    before, within, after, given_back = measure()
    assert within * 10 < before, "blocks within were new pages"
    assert after > within * 10
    assert given_back * os.sysconf("SC_PAGE_SIZE") > 40 * 2**20


def test_what_the_user_has_set_is_left_alone() -> None:
    before, within, _, _ = measure(MALLOC_ARENA_MAX="2")
    assert within > before / 2
