"""Run directories written by the writer, small enough to be damaged byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warmstart.run import layout, writer

FILES = {layout.MODEL: b"model" * 100, layout.STATE_TENSORS: b"state" * 300, layout.STATE: b"{}"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in progress: config, plan and resolved values, no checkpoint yet."""
    folder = writer.create_run(tmp_path / "runs" / "one")
    writer.write_text(folder / layout.CONFIG, "optim:\n  lr: 0.1\n")
    writer.write_json(folder / layout.PLAN, {"rows": []})
    writer.write_json(folder / layout.RESOLVED, {"format": layout.FORMAT_VERSION, "created": "2026-01-01"})
    return folder


@pytest.fixture
def with_steps(run: Path) -> Path:
    """The same with the checkpoints 2, 9 and 12; 9 is the best."""
    for step in (2, 9, 12):
        writer.write_checkpoint(run, step, FILES | {layout.MODEL: b"%d" % step * 50})
    writer.mark_best(run, 9)
    return run


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`full_disk(n)`: the n-th flush to disk from now on, and all after it, find the disk full."""
    import errno
    import os

    real = os.fsync
    left = [10**9]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield lambda number: left.__setitem__(0, number - 1)
