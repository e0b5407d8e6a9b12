"""Episodes: a few classes with a few images each, drawn from classes that no other split has.

Which classes are held out follows from the seed; which classes and images an episode has, from (seed, epoch, episode)
alone. Shapes: C classes, N images, W the way, S the shot, Q the query images of a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from warmstart.config.meta_rules import num_held_out
from warmstart.config.meta_section import MetaConfig
from warmstart.config.schema import Config
from warmstart.data import counters
from warmstart.data.facts import count
from warmstart.data.joined import joined
from warmstart.data.samples import Samples
from warmstart.errors import UserError, closest, listing

if TYPE_CHECKING:
    from warmstart.data.dataset import Dataset


def by_classes(dataset: Dataset, config: Config, seed: int) -> Dataset:
    """The data set with splits of classes in place of splits of images: no class is in two of them.

    All images of all splits are the pool. Targets keep the numbers of the classes. The `seed` draws what is held out.

    Raises:
        UserError: masks or sets of labels, classes that are not there, too few classes or images for an episode.
    """
    meta, whole = config.meta, tuple(dataset.splits.values())
    if dataset.ignore is not None or whole[0].targets.ndim > 1:
        raise UserError(
            f"--meta {meta.method} needs one class per image, and {config.data.path} has "
            + ("masks" if dataset.ignore is not None else "several labels per image"),
            "images with one label each",
        )
    ids = tuple(name for part in whole for name in part.ids)
    pool = whole[0] if len(whole) == 1 else joined(whole, ids)
    held = held_out(dataset.classes, meta, seed)
    splits = {
        split: pool.subset(np.flatnonzero(np.isin(pool.targets, numbers))) for split, numbers in held.items()
    }
    for split, samples in splits.items():
        _check_images(samples, dataset.classes, meta, split)
    told = (
        f"{split} {len(numbers)} ({listing((dataset.classes[n] for n in numbers), 10)})"
        for split, numbers in held.items()
    )
    facts = replace(
        dataset.facts,
        counts=count(splits, dataset.classes),
        sizes={split: len(samples) for split, samples in splits.items()},
        # Without how the images would be divided: nothing of that is left.
        notes=(
            *(n for n in dataset.facts.notes if "val_ratio" not in n),
            f"all images are one pool, divided by classes: {', '.join(told)}",
        ),
    )
    divided = {name: split for split, samples in splits.items() for name in samples.ids}
    return replace(dataset, splits=splits, facts=facts, divided=divided)


def held_out(classes: tuple[str, ...], meta: MetaConfig, seed: int) -> dict[str, tuple[int, ...]]:
    """Numbers of the classes of train, val and test, sorted: those named, the others drawn by the seed.

    Raises:
        UserError: a name that no class has, or fewer classes in a split than an episode has.
    """
    taken: dict[str, list[int]] = {}
    for split, names in (("val", meta.val_classes), ("test", meta.test_classes)):
        if num_held_out(names, meta) is None:
            taken[split] = [_number(name, classes, split) for name in dict.fromkeys(names)]
    named = [number for numbers in taken.values() for number in numbers]
    shuffled = counters.generator(seed, 0, counters.HELD_OUT).permutation(len(classes)).tolist()
    free = [number for number in shuffled if number not in named]
    for split, names in (("test", meta.test_classes), ("val", meta.val_classes)):
        num = num_held_out(names, meta)
        if num is not None:
            taken[split], free = free[:num], free[num:]
    found = {"train": free, "val": taken["val"], "test": taken["test"]}
    short = [split for split, numbers in found.items() if len(numbers) < meta.way]
    if short:
        told = ", ".join(f"{split} {len(numbers)}" for split, numbers in found.items())
        raise UserError(
            f"an episode has {meta.way} classes, and of the {len(classes)} classes of the data these are left: {told}",
            f"at least {meta.way} in each: train, val and test classes never overlap",
            "a smaller --meta.way, other --meta.val-classes and --meta.test-classes, or data of more classes",
        )
    return {split: tuple(sorted(numbers)) for split, numbers in found.items()}


def _number(name: str, classes: tuple[str, ...], split: str) -> int:
    if name not in classes:
        raise UserError(
            f"--meta.{split}-classes: no class is named {name!r}",
            listing(classes, 20),
            closest(name, classes),
        )
    return classes.index(name)


def _check_images(samples: Samples, classes: tuple[str, ...], meta: MetaConfig, split: str) -> None:
    needed = meta.shot + meta.query
    numbers, counts = np.unique(samples.targets, return_counts=True)
    few = [f"{classes[number]} {num}" for number, num in zip(numbers, counts, strict=True) if num < needed]
    if few:
        raise UserError(
            f"an episode has {needed} different images of each class ({meta.shot} + {meta.query}), and of the {split} "
            f"classes some have fewer: {listing(few, 6)}",
            f"at least {needed} images of each class",
            "a smaller --meta.query or --meta.shot, or leave these classes out of the data",
        )


def episode_windows(targets: np.ndarray, config: Config, epoch: int) -> list[list[np.ndarray]]:
    """The optimizer steps of an epoch: windows of `accumulate` episodes, each a micro-batch of places (order.py).

    The repeat of a place is the number of its episode, so an image is augmented anew in every one.
    """
    meta, size = config.meta, config.optim.accumulate
    drawn = islice(episodes(targets, meta, config.train.seed, epoch, counters.EPISODE), meta.episodes)
    places = [indices + number * len(targets) for number, indices in enumerate(drawn)]
    return [places[start : start + size] for start in range(0, len(places), size)]


def fixed_episodes(targets: np.ndarray, config: Config, num: int) -> list[np.ndarray]:
    """Indices of the first `num` episodes that are the same in every validation, by the seed."""
    return list(islice(episodes(targets, config.meta, config.train.seed, 0, counters.FIXED_EPISODE), num))


def _full_classes(targets: np.ndarray, meta: MetaConfig) -> np.ndarray:
    """The classes with images enough for an episode: while training, some may be lost."""
    labels, counts = np.unique(targets, return_counts=True)
    return labels[counts >= meta.shot + meta.query]


def has_episodes(targets: np.ndarray, meta: MetaConfig) -> bool:
    return len(_full_classes(targets, meta)) >= meta.way


def episodes(
    targets: np.ndarray, meta: MetaConfig, seed: int, epoch: int, purpose: int
) -> Iterator[np.ndarray]:
    """Episodes without end, int64 (W * (S + Q),): images to learn from, class by class, then those to answer for.

    W different classes, each with S + Q different images, all equally likely.
    """
    members = [np.flatnonzero(targets == label) for label in _full_classes(targets, meta)]
    number = 0
    while True:
        generator = counters.generator(seed, epoch, purpose, number)
        chosen = generator.permutation(len(members))[: meta.way].tolist()
        drawn = [generator.choice(members[label], meta.shot + meta.query, replace=False) for label in chosen]
        rows = np.stack(drawn)
        yield np.concatenate([rows[:, : meta.shot].reshape(-1), rows[:, meta.shot :].reshape(-1)])
        number += 1
