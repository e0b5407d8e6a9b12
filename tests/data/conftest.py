"""Small real inputs for the tests of data/."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing: it holds the data sets of these tests")
    return SHARED / "data"


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """A smooth uint8 (H, W, 3) picture whose corners all differ: top left red, top right green, bottom blue."""

    def make(height: int = 24, width: int = 36) -> np.ndarray:
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        return np.stack([200 * (1 - x) * (1 - y), 200 * x * (1 - y), 200 * y], axis=-1).astype(np.uint8)

    return make


@pytest.fixture
def write_folders(tmp_path: Path) -> Callable[..., Path]:
    """Write `{"train/cat": 3}` as that many small PNG files; grey or colour; returns the root."""

    def write(layout: dict[str, int], size: tuple[int, int] = (8, 8), grey: bool = False) -> Path:
        root = tmp_path / "data"
        rng = np.random.default_rng(0)
        for place, num in layout.items():
            (root / place).mkdir(parents=True, exist_ok=True)
            for number in range(num):
                pixels = rng.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / place / f"{number}.png")
        return root

    return write


@pytest.fixture
def write_idx(tmp_path: Path) -> Callable[..., Path]:
    """Write images and labels as an IDX pair, gzipped or not; returns the root."""

    def write(prefix: str, images: np.ndarray, labels: np.ndarray, packed: bool = True) -> Path:
        root = tmp_path / "idx"
        root.mkdir(exist_ok=True)
        for part, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(
                extent.to_bytes(4, "big") for extent in array.shape
            )
            content = header + array.astype(np.uint8).tobytes()
            name = f"{prefix}-{part}-ubyte"
            if packed:
                (root / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (root / name).write_bytes(content)
        return root

    return write


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Write `{("images", "masks"): 3}` as so many PNG images and masks of ids 0, 1, 2; returns the root.

    An image is painted red, green and blue where its mask is 0, 1 and 2.
    """

    def write(
        layout: dict[tuple[str, str], int], size: tuple[int, int] = (40, 56), ending: str = ".png"
    ) -> Path:
        root = tmp_path / "pairs"
        for (images, masks), num in layout.items():
            for number in range(num):
                rng = np.random.default_rng([number, *images.encode()])
                ids = rng.integers(0, 3, (4, 5), dtype=np.uint8).repeat(-(-size[0] // 4), 0)
                ids = np.ascontiguousarray(ids.repeat(-(-size[1] // 5), 1)[: size[0], : size[1]])
                for folder in (images, masks):
                    (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.eye(3, dtype=np.uint8)[ids] * 255).save(root / images / f"{number:02}.png")
                Image.fromarray(ids).save(root / masks / f"{number:02}{ending}")
        return root

    return write
