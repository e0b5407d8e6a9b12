"""Whether a run keeps the features of its frozen prefix, where the model is cut, and in how many views."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from warmstart.adapt.apply import set_modes
from warmstart.console import log
from warmstart.data.batches import deliver
from warmstart.data.cache_folder import cache_root, memory_room, room
from warmstart.engine.feed import keeps_files
from warmstart.engine.job import Job
from warmstart.errors import UserError
from warmstart.inference.cut import Cut, NoCut, find_cut, prefix_features
from warmstart.inference.inputs import InputBuffer

_MOST_VIEWS = 4  # of an image, where nobody asks for a number
_NUM_PROBED = 8


@dataclass(frozen=True)
class FeatureChoice:
    """The cut (None: every image goes through the whole model), the number of kept views, and why."""

    cut: Cut | None
    views: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FeatureChoice:
        cut = values["cut"]
        if cut is not None:
            shapes = tuple(tuple(shape) for shape in cut["shapes"])
            cut = Cut(**{**cut, "frozen": tuple(cut["frozen"]), "shapes": shapes})
        return cls(cut, values["views"], values["reason"])


def choose_features(job: Job) -> FeatureChoice:
    """What `--feature-cache` asks for: `auto` keeps features wherever that saves work.

    Raises:
        UserError: features were asked for by name and cannot be kept.
    """
    asked, views = job.config.data.feature_cache, _views(job)
    if asked == "off":
        return FeatureChoice(None, 1, "switched off")
    try:
        cut, num_bytes = _cut(job, views, by_name=asked == "on")
    except NoCut as no:
        if asked == "on":
            raise UserError(
                f"--feature-cache on: {no}",
                "a model whose first blocks are frozen for the whole run",
                "--feature-cache auto",
            ) from no
        return FeatureChoice(None, 1, str(no))
    return FeatureChoice(cut, views, f"{num_bytes / 1e6:.1f} MB at the {cut.name}")


def _views(job: Job) -> int:
    augment, given = job.train_view.augment, job.config.data.views
    if augment is None or not augment.active:
        return 1
    return given or min(job.config.train.epochs, _MOST_VIEWS)


def _cut(job: Job, views: int, by_name: bool) -> tuple[Cut, int]:
    rows = job.plan.rows
    num_frozen = next((number for number, row in enumerate(rows) if row.mode != "frozen"), len(rows))
    if num_frozen == 0:
        raise NoCut("the first block trains")
    if job.dataset.ignore is not None:
        raise NoCut("masks move with their images")
    if job.train_view.mixing is not None:
        raise NoCut("mixed images have no features of their own")
    if not by_name and job.config.train.epochs <= views:
        raise NoCut(f"{job.config.train.epochs} epochs of {views} views repeat nothing")
    built = job.built
    frozen = [
        path for block in built.blocks if job.plan.row(block.name).mode == "frozen" for path in block.modules
    ]
    trained = list(dict.fromkeys(name.rpartition(".")[0] for row in rows for name in row.trainable))
    cut, images = _proved(job, frozen, trained)
    size = prefix_features(built.module, cut, images)[0].numel()
    if not by_name and size > images[0].numel():
        raise NoCut(f"the features at the {cut.name} are larger than the images")
    splits = job.dataset.splits
    num_bytes = 4 * size * (views * len(splits["train"]) + sum(map(len, splits.values())))
    limit = _room(job)
    if num_bytes > limit:
        raise NoCut(
            f"the features would take {num_bytes / 1e9:.1f} GB, and there is room for {limit / 1e9:.1f}"
        )
    return cut, num_bytes


def _proved(job: Job, frozen: list[str], trained: list[str]) -> tuple[Cut, torch.Tensor]:
    """The cut, and the images that it was proved on: two, where there is no room for more."""
    built = job.built
    for num in (_NUM_PROBED, 2):
        images = _some_images(job, num)
        try:
            modes = partial(set_modes, built.module, job.plan, built.blocks, 0)
            return find_cut(built.module, frozen, trained, images, modes), images
        except torch.OutOfMemoryError:
            log.warning("out of memory with %d images at once while the frozen part is looked at", num)
    raise NoCut("there is no room for two images at once")


def _room(job: Job) -> int:
    """Bytes that features may take: in memory, or on disk where they are kept as files."""
    if not keeps_files(job):
        return memory_room()
    try:
        return max(memory_room(), room(cache_root(job.config.data.cache_dir)))
    except OSError:  # a folder that cannot be made; the features are in memory then, and the log says why
        return memory_room()


def _some_images(job: Job, num: int) -> torch.Tensor:
    samples, view = job.dataset.splits["train"], job.train_view
    chosen = np.arange(min(num, len(samples)))
    (batch,) = deliver(samples, [chosen], view)
    return InputBuffer(view.preprocessing, job.device, job.built.channels_last)(batch.images)
