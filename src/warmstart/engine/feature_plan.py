"""Whether a run keeps the features of its frozen prefix, where the model is cut, and in how many views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from warmstart.adapt.apply import set_modes
from warmstart.console import log
from warmstart.data.batches import Batch, deliver
from warmstart.data.cache_folder import cache_root, memory_room, room
from warmstart.engine.feed import keeps_files
from warmstart.engine.job import Job, Kept
from warmstart.errors import UserError
from warmstart.inference.cut import Cut, NoCut, prefix_features
from warmstart.inference.find_cut import find_cut
from warmstart.inference.inputs import InputBuffer
from warmstart.models.adapters.inject import adapted_layer

_MOST_VIEWS = 4  # of an image, where nobody asks for a number
_NUM_PROBED = 8
_LEAST_REPEATS = (
    4  # of a view: writing larger features cost an smp:Unet what three epochs of reading them saved
)
_LEAST_OPERATIONS = 500  # floating-point, for a number that is read; 50 or so take as long as reading it


@dataclass(frozen=True)
class FeatureChoice:
    """The cut (None: every image goes through the whole model), the number of kept views, and why.

    `answers`: whether those of teachers to these views are kept, and why or why not (empty without a teacher).
    """

    cut: Cut | None
    views: int
    reason: str
    answers: bool = False
    answers_reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FeatureChoice:
        cut = None if values["cut"] is None else Cut.from_json(values["cut"])
        return cls(**{**values, "cut": cut})


def choose_features(job: Job) -> tuple[FeatureChoice, ...]:
    """For each stage what `--feature-cache` asks for: `auto` keeps features wherever that saves work.

    Raises:
        UserError: features were asked for by name and cannot be kept in any stage.
    """
    chosen = tuple(with_answers(job, stage, _choice(job, stage)) for stage in range(len(job.plan.stages)))
    is_any_kept = any(choice.cut is not None or choice.answers for choice in chosen)
    if job.config.data.feature_cache == "on" and not is_any_kept:
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
    return tuple(Kept(choice.cut, choice.views, choice.answers) for choice in chosen)


def _choice(job: Job, stage: int) -> FeatureChoice:
    asked, views = job.config.data.feature_cache, _views(job, stage)
    if asked == "off":
        return FeatureChoice(None, 1, "switched off")
    try:
        cut, num_bytes = _cut(job, stage, views, by_name=asked == "on")
    except NoCut as no:
        return FeatureChoice(None, 1, str(no))
    return FeatureChoice(cut, views, f"{num_bytes / 1e6:.1f} MB at the {cut.name}")


def with_answers(job: Job, stage: int, choice: FeatureChoice) -> FeatureChoice:
    """The choice, with whether the teachers' answers are kept beside its features; these are none without answers."""
    if job.teachers is None:
        return choice
    views = choice.views if choice.cut is not None else _fixed_views(job)
    why = _why_no_answers(job, stage, choice, views)
    if why is None and views is not None:
        reason = f"{_answer_bytes(job, views) / 1e6:.1f} MB"
        return replace(choice, views=views, answers=True, answers_reason=reason)
    if choice.cut is not None:
        choice = FeatureChoice(None, 1, f"the teacher takes whole images: {why}")
    return replace(choice, answers_reason=str(why))


def _fixed_views(job: Job) -> int | None:
    """None: every epoch shows its own."""
    augment = job.train_view.augment
    return job.config.data.views if augment is not None and augment.active else 1


def _answer_bytes(job: Job, views: int) -> int:
    assert job.teachers is not None, "asked for only with teachers"
    return 4 * math.prod(job.teachers.shape) * views * len(job.dataset.training)


def _why_no_answers(job: Job, stage: int, choice: FeatureChoice, views: int | None) -> str | None:
    epochs = _num_epochs(job, stage)
    if job.hint_pairs:
        return "hints need its maps in every step"
    if job.config.data.feature_cache == "off":
        return "switched off with --feature-cache off"
    if job.train_view.mixing is not None:
        return "mixed images are new in every epoch"
    if views is None:
        return "augmentation shows other views in every epoch (--views K shows K of them in turn)"
    if job.config.data.feature_cache == "auto" and choice.cut is None and epochs <= views:
        return f"{epochs} epochs of {views} views repeat nothing"
    if (num_bytes := _answer_bytes(job, views)) > _room(job):
        return f"they would take {num_bytes / 1e9:.1f} GB, and there is room for {_room(job) / 1e9:.1f}"
    return None


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
    if job.hint_pairs:
        raise NoCut("hints are of whole images, in every step")
    if job.lanes:
        raise NoCut("the batches of several tasks go through different heads")
    if job.captions is not None:
        raise NoCut("captions go through the text tower in every step")
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
    names = (name for row in trained_rows for name in row.trainable)
    trained = list(dict.fromkeys(adapted_layer(name) or name.rpartition(".")[0] for name in names))
    cut, images = _proved(job, stage, frozen, trained)
    size = prefix_features(built.module, cut, images)[0].numel()
    if job.config.train.compile and len(cut.shapes) > 1:
        raise NoCut(f"--compile takes one tensor, and {len(cut.shapes)} cross the cut")
    if not by_name and size > images[0].numel():
        _check_worth(job, cut, images, epochs / views)
    num_measured = sum(map(len, job.dataset.splits.values()))
    num_measured += 0 if job.retained is None else len(job.retained.samples)
    per_image = 4 * size + (0 if job.dataset.ignore is None else images[0, 0].numel())
    num_bytes = per_image * (views * len(job.dataset.training) + num_measured)
    limit = _room(job)
    if num_bytes > limit:
        raise NoCut(
            f"the features would take {num_bytes / 1e9:.1f} GB, and there is room for {limit / 1e9:.1f}"
        )
    return cut, num_bytes


def _check_worth(job: Job, cut: Cut, images: torch.Tensor, repeats: float) -> None:
    """Raises NoCut unless a processor reads large features well before it could compute them, and often."""
    large = f"the features at the {cut.name} are larger than the images"
    if job.device.type != "cpu":
        raise NoCut(f"{large}, and {job.device.type} computes faster than it is fed")
    with FlopCounterMode(display=False) as counter:
        features = prefix_features(job.built.module, cut, images)
    if counter.get_total_flops() < _LEAST_OPERATIONS * features.numel():
        raise NoCut(f"{large}, and soon computed")
    if repeats < _LEAST_REPEATS:
        raise NoCut(f"{large}, and each is used only {repeats:.3g} times")


def _proved(job: Job, stage: int, frozen: list[str], trained: list[str]) -> tuple[Cut, torch.Tensor]:
    """The cut, and the images that it was proved on: two, where there is no room for more."""
    built = job.built
    for num in (_NUM_PROBED, 2):
        images = some_images(job, num)
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


def some_images(job: Job, num: int) -> torch.Tensor:
    """The first `num` training images as the model takes them, on the device."""
    return as_inputs(job, some_batch(job, num))


def some_batch(job: Job, num: int, number: int = 0) -> Batch:
    """The batch of this number of `num` training images each, as they lie; behind the last come the first again."""
    samples = job.dataset.splits["train"]
    chosen = (number * num + np.arange(min(num, len(samples)))) % len(samples)
    (batch,) = deliver(samples, [chosen], job.train_view)
    return batch


def as_inputs(job: Job, batch: Batch) -> torch.Tensor:
    """Its images (N, C, H, W), on the device."""
    return InputBuffer(job.train_view.preprocessing, job.device, job.built.channels_last)(batch.images)
