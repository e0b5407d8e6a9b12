"""Small real data and runs for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmstart.config import io
from warmstart.run.reader import Run


@pytest.fixture(autouse=True)
def _calm(one_thread: None) -> None:
    """Every test of this folder computes on one thread."""


@pytest.fixture
def data(overlapping: Path) -> Path:
    return overlapping


@pytest.fixture
def settings(small_settings: dict[str, Any], tmp_path: Path) -> Callable[..., io.Loaded]:
    """Settings of a small run in tmp_path/NAME: 24 training images, so 3 steps of 8 per epoch."""

    def make(name: str = "run", **given: Any) -> io.Loaded:
        values = {**small_settings, "epochs": 2, "log_every": "1steps", "output_dir": str(tmp_path / name)}
        return io.load({**values, **given})

    return make


@pytest.fixture
def finetune(settings: Callable[..., io.Loaded]) -> Callable[..., Run]:
    """Run it to its end."""
    from warmstart.engine import train

    def start(name: str = "run", **given: Any) -> Run:
        return Run(train.finetune(settings(name, **given)))

    return start
