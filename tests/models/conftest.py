"""What the tests of models share: the folder of real files, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the data folder {SHARED} is not here")
    return SHARED


@pytest.fixture
def fashion_file(shared: Path) -> Path:
    return shared / "models" / "fashion_mnist" / "mnist_cnn3.pt"


@pytest.fixture
def cifar_file(shared: Path) -> Path:
    return shared / "models" / "mobilenetv3_small_100.cifar10-64px.safetensors"
