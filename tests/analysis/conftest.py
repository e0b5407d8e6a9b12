"""One small finished run on generated pictures, shared by the tests of analysis/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import warmstart as ws


def write_pictures(folder: Path, numbers: dict[str, int], seed: int = 0) -> None:
    """Noise whose mean tells the class: dark `cat`, middling `dog`, bright `owl`."""
    generator = np.random.default_rng(seed)
    brightness = {"cat": 30, "dog": 110, "owl": 190}
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 40, (20, 24, 3)) + brightness[name]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="session")
def pictures() -> Callable[..., None]:
    return write_pictures


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three classes (split by us), trained until it knows them a little."""
    root = tmp_path_factory.mktemp("analysis")
    write_pictures(root / "data", {"cat": 20, "dog": 20, "owl": 20})
    ws.finetune(
        "builtin:fashion_cnn",
        str(root / "data"),
        weights="none",
        image_size=16,
        batch_size=8,
        epochs=2,
        augment="none",
        lr=3e-3,
        pictures=False,
        output_dir=str(root / "run"),
    )
    return root / "run"
