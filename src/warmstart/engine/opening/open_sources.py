"""The data sets beside --data: those that are mixed in, and the one that must not be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from warmstart.config.mix_rules import source_paths
from warmstart.config.mix_values import UNION, Share, by_path, share_at
from warmstart.config.places import absolute
from warmstart.config.schema import Config, DataConfig
from warmstart.console import log
from warmstart.data.dataset import Dataset
from warmstart.data.joined import same_images
from warmstart.data.mixture import Mixture, Part, balanced_sample, class_numbers, renumbered
from warmstart.data.samples import Samples
from warmstart.data.sources import open_source
from warmstart.errors import UserError, closest, listing
from warmstart.models.build import BuiltModel


@dataclass(frozen=True, eq=False)
class Retained:
    """What must not be forgotten: `samples` are measured, `training` is what was learned from, in the run's classes."""

    path: str
    split: str
    samples: Samples
    native: bool
    training: Samples


@dataclass(frozen=True, eq=False)
class OtherSource:
    """One data set beside --data, opened and divided as if it were the run's own; `split` as in `open_inputs`."""

    path: str
    dataset: Dataset
    split: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        facts = {key: value for key, value in asdict(self.dataset.facts).items() if key != "notes"}
        return facts | {"path": absolute(self.path), "native": self.dataset.native, "split": self.split}


@dataclass(frozen=True, eq=False)
class OpenedTask:
    """One of several tasks: its data, and the model as it sees it. `source` is its number among the `sources`.

    One that is not `trained` has a head that is kept, and is measured.
    """

    name: str
    dataset: Dataset
    built: BuiltModel
    settings: DataConfig
    trained: bool
    source: int | None


def classes_of_others(config: Config) -> dict[str, tuple[str, ...]]:
    """Path -> classes, where they join those of --data; nothing is opened otherwise."""
    if config.data.mix_classes != UNION:
        return {}
    data = config.data
    found = {
        path: open_source(
            path, allow_single_class=True, label_columns=data.label_columns, download=data.download
        )
        for path in source_paths(config)
    }
    for path, source in found.items():
        if source.ignore is not None:
            raise UserError(
                f"--mix-classes union: {path} has masks", "one class per image, or sets of labels"
            )
    return {path: source.classes for path, source in found.items()}


def settings_of_source(config: Config, path: str) -> Config:
    """The config with another data set as its data; what names columns or limits of --data is not for it."""
    data = config.data.model_copy(update={"path": path, "group": None, "limit": None, "mix": ()})
    text = config.text.model_copy(update={"captions": None})
    return config.model_copy(update={"data": data, "text": text})


def add_sources(
    config: Config,
    own: Dataset,
    classes: tuple[str, ...],
    open_other: Callable[[int, str], OtherSource],
) -> tuple[Dataset, tuple[OtherSource, ...], Retained | None]:
    """`own` with the images that are mixed in, all data sets that were opened, and what is retained.

    `classes` are those of the model; targets of all data sets become numbers of theirs.

    Raises:
        UserError: other classes, the same data set twice, or no training images.
    """
    paths = source_paths(config)
    if not paths:
        return own, (), None
    opened = tuple(open_other(number, path) for number, path in enumerate(paths))
    _check_mapping(config, own, opened)
    own = _with_classes(own, classes)
    in_ours = {
        source.path: _in_classes(source, own, classes, _flag(config, source.path), config)
        for source in opened
    }
    shares = by_path(config.data.mix)
    parts = []
    for path, dataset in in_ours.items():
        _check_other(dataset, own, _flag(config, path))
        left = _without_measured(dataset, own, path) if path in shares or config.retain.replay else None
        if path in shares:
            assert left is not None
            parts.append(Part(path, left, dataset.native, partial(share_at, shares[path])))
        if path == config.retain.path and config.retain.replay:
            assert left is not None
            kept = balanced_sample(left.targets, config.retain.images, config.train.seed)
            always = partial(share_at, (Share(path, config.retain.replay),))
            parts.append(Part(f"replay of {path}", left.subset(kept), dataset.native, always))
    if parts:
        own = replace(own, mixture=Mixture.of(own.splits["train"], own.native, parts))
    known = config.retain.path
    return own, opened, None if known is None else _retained(known, in_ours[known], own)


def _check_mapping(config: Config, own: Dataset, opened: tuple[OtherSource, ...]) -> None:
    """UserError where --mix-classes names a class that no data set has; a union that adds nothing is told."""
    mapping = config.data.mix_classes
    names = {name for source in opened for name in source.dataset.classes}
    if mapping == UNION:
        if all(set(source.dataset.classes) == set(own.classes) for source in opened):
            log.warning("--mix-classes union has no effect: the other data sets have the classes of --data")
        return
    missing = [theirs for theirs, _ in mapping if theirs not in names]
    if missing:
        raise UserError(
            f"--mix-classes: no class of the other data sets is called {listing(map(repr, missing))}",
            f"their classes: {listing(sorted(names), 20)}",
            closest(missing[0], sorted(names)) or "leave it out",
        )


def _flag(config: Config, path: str) -> str:
    return f"{'--retain' if path == config.retain.path else '--mix'} {path}"


def _with_classes(own: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The data set of --data with the classes of the whole training; its own are the first of them."""
    if classes == own.classes:
        return own
    numbers = np.arange(len(own.classes))
    splits = {split: renumbered(samples, numbers, len(classes)) for split, samples in own.splits.items()}
    return replace(own, classes=classes, splits=splits)


def _in_classes(
    source: OtherSource, own: Dataset, classes: tuple[str, ...], flag: str, config: Config
) -> Dataset:
    dataset = source.dataset
    kinds = {
        (part.splits["train"].targets.ndim, part.ignore, part.splits["train"].masks is None)
        for part in (own, dataset)
    }
    if len(kinds) > 1:
        raise UserError(
            f"{flag} has targets of another kind than --data (one class per image, sets of labels, or masks)",
            "the same kind of targets",
        )
    numbers = class_numbers(dataset.classes, classes, config.data.mix_classes, flag)
    splits = {split: renumbered(samples, numbers, len(classes)) for split, samples in dataset.splits.items()}
    return replace(dataset, splits=splits)


def _check_other(dataset: Dataset, own: Dataset, flag: str) -> None:
    ours, theirs = own.splits["train"], dataset.splits["train"]
    # A fingerprint goes by names and sizes of files, which small images may share by chance.
    is_like = dataset.facts.fingerprint == own.facts.fingerprint
    if is_like and len(same_images(theirs, ours)) * 2 > len(theirs):
        raise UserError(
            f"{flag} is the same data set as --data",
            "another data set: its images would be trained on and measured at once",
            "leave it out",
        )


def _without_measured(dataset: Dataset, own: Dataset, path: str) -> Samples:
    """The training images of another data set, without those that --data is measured on."""
    training = dataset.splits["train"]
    for split in ("val", "test"):
        if split not in own.splits or not len(training):
            continue
        known = same_images(training, own.splits[split])
        if len(known):
            log.warning(
                "%d training images of %s are %s images of --data, and are left out: %s",
                len(known),
                path,
                split,
                listing((training.ids[row] for row in known.tolist()), 5),
            )
            training = training.subset(np.setdiff1d(np.arange(len(training)), known))
    if not len(training):
        raise UserError(
            f"every training image of {path} is a val or test image of --data",
            "another data set: its images would be trained on and measured at once",
        )
    return training


def _retained(path: str, dataset: Dataset, own: Dataset) -> Retained:
    """Its test images, else val, else what it was trained on. Says where --data trains on them."""
    split = next(name for name in ("test", "val", "train") if name in dataset.splits)
    samples = dataset.splits[split]
    known = same_images(samples, own.training)
    if len(known):
        log.warning(
            "%d of %d %s images of %s are trained on here: what is kept of it looks better than it is: %s",
            len(known),
            len(samples),
            split,
            path,
            listing((samples.ids[row] for row in known.tolist()), 5),
        )
    return Retained(path, split, samples, dataset.native, dataset.splits["train"])
