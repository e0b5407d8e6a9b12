"""What is asked of the store of decoded pixels: where it is kept, and at which size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.cache_folder import cache_root
from warmstart.data.decode import scale_to_cover, stretch_to, to_channels
from warmstart.records import Preprocessing


@dataclass(frozen=True)
class StorePlan:
    """Where pixels are kept (`auto`, `ram`, `disk`, `off`), and the size in pixels that they must cover.

    `warm` takes what is on disk, if all of it is there, and builds nothing. `nearest`: pixels are ids. `stretch`: both
    sides get their size (records.Preprocessing).
    """

    mode: str
    folder: Path
    size: tuple[int, int]
    num_channels: int
    nearest: bool = False
    what: str = "images"
    stretch: bool = False

    def for_masks(self, wide: bool) -> StorePlan:
        """The same for the masks of the images (masks.py), which then have their images' sizes."""
        assert not self.stretch, "no segmenting model stretches"
        return replace(self, num_channels=2 if wide else 1, nearest=True, what="masks")


def plan_store(settings: DataConfig, preprocessing: Preprocessing, mode: str | None = None) -> StorePlan:
    """What `--cache` and `--cache-dir` ask for, for a model's input."""
    folder = cache_root(settings.cache_dir)
    return StorePlan(
        mode or settings.cache,
        folder,
        preprocessing.resize_size,
        preprocessing.num_channels,
        stretch=preprocessing.stretch,
    )


def shrink(image: np.ndarray, plan: StorePlan) -> np.ndarray:
    """As the store keeps it: covering the store size, unless that would enlarge it."""
    image = to_channels(image, plan.num_channels)
    height, width = image.shape[:2]
    if plan.stretch:  # whichever is the smaller
        return stretch_to(image, plan.size) if height * width > plan.size[0] * plan.size[1] else image
    is_smaller = height < plan.size[0] or width < plan.size[1]
    return image if is_smaller else scale_to_cover(image, plan.size, plan.nearest)
