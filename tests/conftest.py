"""Fixtures and paths that every test may use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two test processes on two cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is decoded and kept in tests is no business of the user's cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="warmstart-tests-")
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data and checkpoints beside the project; tests that need it say so when it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and a busy machine cannot change the rounding."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 grey pictures of 16 px in three classes that overlap: 25 or so to train on."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, brightness in (("ant", 90), ("bee", 120), ("cat", 150)):
        (root / name).mkdir()
        for number in range(14):
            pixels = rng.normal(brightness, 40, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip: a CLIP trained for seconds on coloured shapes; data: class folders of shapes that it never saw."""
    import torch
    from tiny_clip import write_clip, write_folders

    root = tmp_path_factory.mktemp("tiny-clip")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_clip(root / "clip", steps=100)
    torch.set_num_threads(threads)
    write_folders(root / "data", {"train": 4, "val": 6, "test": 10}, seed=0)
    return root


@pytest.fixture
def small_settings(overlapping: Path) -> dict[str, object]:
    """24 training images in 3 steps of 8 per epoch, on a network that takes milliseconds."""
    return {
        "data": str(overlapping),
        "model": "builtin:fashion_cnn",
        "weights": "none",
        "image_size": "16",
        "batch_size": 8,
        "train_ratio": 0.6,
        "val_ratio": 0.25,
        "lr": 0.01,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
    }


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
