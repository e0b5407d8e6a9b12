"""Whether a run keeps the features of its frozen prefix, where the model is cut, and in how many views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from warmstart.engine.job import Job, Kept
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


def choose_features(job: Job) -> tuple[FeatureChoice, ...]:
    """For each stage what `--feature-cache` asks for: `auto` keeps features wherever that saves work.

    Raises:
        UserError: features were asked for by name and cannot be kept in any stage.
    """
    chosen = tuple(_choice(job, stage) for stage in range(len(job.plan.stages)))
    if job.config.data.feature_cache == "on" and all(choice.cut is None for choice in chosen):
        raise UserError(
            f"--feature-cache on: {chosen[0].reason}",
            "a model whose first blocks are frozen, for the whole run or in its first stages",
            "--feature-cache auto",
        )
    return chosen


def choices_to_json(chosen: Sequence[FeatureChoice]) -> dict[str, Any]:
    """That of the first stage, with those of `later` ones."""
    first, *later = (choice.to_json() for choice in chosen)
    return {**first, "later": later}


def choices_from_json(values: dict[str, Any]) -> list[FeatureChoice]:
    """Inverse of `choices_to_json`."""
    first = {name: value for name, value in values.items() if name != "later"}
    return [FeatureChoice.from_json(each) for each in (first, *values.get("later", ()))]


def kept_features(chosen: Iterable[FeatureChoice]) -> tuple[Kept, ...]:
    """What a job needs of the choices."""
    return tuple(Kept(choice.cut, choice.views) for choice in chosen)


def _choice(job: Job, stage: int) -> FeatureChoice:
    asked, views = job.config.data.feature_cache, _views(job, stage)
    if asked == "off":
        return FeatureChoice(None, 1, "switched off")
    try:
        cut, num_bytes = _cut(job, stage, views, by_name=asked == "on")
    except NoCut as no:
        return FeatureChoice(None, 1, str(no))
    return FeatureChoice(cut, views, f"{num_bytes / 1e6:.1f} MB at the {cut.name}")


def _views(job: Job, stage: int) -> int:
    augment, given = job.train_view.augment, job.config.data.views
    if augment is None or not augment.active:
        return 1
    return given or min(_num_epochs(job, stage), _MOST_VIEWS)


def _num_epochs(job: Job, stage: int) -> int:
    """Epochs that a stage has a part of; where its beginning or end depends on how the run goes, at most."""
    per_epoch, first, last = job.pace.steps_per_epoch, 0, job.config.train.epochs
    steps = [each.trigger.step(per_epoch) for each in job.plan.stages]
    begins = [step // per_epoch for step in steps[: stage + 1] if step is not None]
    ends = [-(-step // per_epoch) for step in steps[stage + 1 :] if step is not None]
    return max(1, min([last, *ends]) - max([first, *begins]))


def _cut(job: Job, stage: int, views: int, by_name: bool) -> tuple[Cut, int]:
    rows = job.plan.rows
    trained_rows = [row for row in rows if row.trains_in(stage)]
    if rows[0] in trained_rows:
        raise NoCut("the first block trains")
    if job.dataset.ignore is not None:
        raise NoCut("masks move with their images")
    if job.train_view.mixing is not None:
        raise NoCut("mixed images have no features of their own")
    epochs = _num_epochs(job, stage)
    if not by_name and epochs <= views:
        raise NoCut(f"{epochs} epochs of {views} views repeat nothing")
    built = job.built
    frozen = [
        path
        for block in built.blocks
        if not job.plan.row(block.name).trains_in(stage)
        for path in block.modules
    ]
    trained = list(dict.fromkeys(name.rpartition(".")[0] for row in trained_rows for name in row.trainable))
    cut, images = _proved(job, stage, frozen, trained)
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


def _proved(job: Job, stage: int, frozen: list[str], trained: list[str]) -> tuple[Cut, torch.Tensor]:
    """The cut, and the images that it was proved on: two, where there is no room for more."""
    built = job.built
    for num in (_NUM_PROBED, 2):
        images = _some_images(job, num)
        try:
            modes = partial(set_modes, built.module, job.plan, built.blocks, stage)
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
