"""Small real data and runs for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from warmstart.config import io
from warmstart.run.reader import Run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and a busy machine cannot change the rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 grey pictures of 16 px in three classes that overlap: 25 or so to train on."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, brightness in (("ant", 90), ("bee", 120), ("cat", 150)):
        (root / name).mkdir()
        for number in range(14):
            pixels = rng.normal(brightness, 40, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> Callable[..., io.Loaded]:
    """Settings of a small run in tmp_path/NAME: 24 training images, so 3 steps of 8 per epoch."""

    def make(name: str = "run", **given: Any) -> io.Loaded:
        values = {
            "data": str(data),
            "model": "builtin:fashion_cnn",
            "weights": "none",
            "image_size": "16",
            "batch_size": 8,
            "train_ratio": 0.6,
            "val_ratio": 0.25,
            "epochs": 2,
            "lr": 0.01,
            "log_every": "1steps",
            "workers": 0,
            "device": "cpu",
            "tensorboard": False,
            "output_dir": str(tmp_path / name),
        }
        return io.load({**values, **given})

    return make


@pytest.fixture
def finetune(settings: Callable[..., io.Loaded]) -> Callable[..., Run]:
    """Run it to its end."""
    from warmstart.engine import train

    def start(name: str = "run", **given: Any) -> Run:
        return Run(train.finetune(settings(name, **given)))

    return start


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send this process a real SIGINT when a step has been counted; each number is used once."""
    import os
    import signal

    from warmstart.engine.state import TrainState

    def arrange(*at_steps: int) -> None:
        left = list(at_steps)
        count = TrainState.advance

        def advance(state: TrainState, steps_per_epoch: int) -> None:
            count(state, steps_per_epoch)
            if left and state.step == left[0]:
                left.pop(0)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(TrainState, "advance", advance)

    return arrange
