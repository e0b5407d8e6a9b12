"""Trials on a network that takes milliseconds, in processes that were forked behind the import of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
from warmstart.config import io
from warmstart.methods.trials.process import Launch
from warmstart.methods.trials.trial import Trial


@pytest.fixture
def trial(small_settings: dict[str, Any], tmp_path: Path) -> Callable[..., Trial]:
    """Trial `number` of a folder, with these settings changed."""

    def make(number: int, **changed: Any) -> Trial:
        return Trial(number, tmp_path / f"{number:04}", io.load({**small_settings, "epochs": 4, **changed}))

    return make


@pytest.fixture
def launch() -> Launch:
    return forked.launch
