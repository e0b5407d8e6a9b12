"""Trials on a network that takes milliseconds, in processes that were forked behind the import of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh
from warmstart.config import io
from warmstart.methods.trials.process import Launch, command_of, launch_here
from warmstart.methods.trials.trial import Slot, Trial


@pytest.fixture
def trial(small_settings: dict[str, Any], tmp_path: Path) -> Callable[..., Trial]:
    """Trial `number` of a folder, with these settings changed."""

    def make(number: int, **changed: Any) -> Trial:
        return Trial(number, tmp_path / f"{number:04}", io.load({**small_settings, "epochs": 4, **changed}))

    return make


@pytest.fixture
def launch() -> Launch:
    def forked(trial: Trial, slot: Slot) -> fresh.Started:
        _, _, module, *arguments = command_of(trial, slot)
        return fresh.Started(module, arguments, trial.cwd, trial.beside(".txt"))

    return forked if sys.platform == "linux" else launch_here
