"""Several data sets in one training: their images in a row, and which of them an epoch shows.

An epoch has as many places as --data has training images. Each data set gets its share of them, and which images
take them follows from (seed, epoch) alone. Shapes: N images of all data sets together, P places of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from warmstart.config.mix_values import UNION, MixClassesValue
from warmstart.config.schema import Config
from warmstart.data import counters
from warmstart.data.episodes import episode_windows
from warmstart.data.facts import count
from warmstart.data.joined import joined
from warmstart.data.order import balanced_order, epoch_order, epoch_windows, weighted_order
from warmstart.data.samples import Samples
from warmstart.data.splits import strata
from warmstart.errors import UserError, closest, listing

if TYPE_CHECKING:
    from warmstart.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Part:
    """Training images of one data set beside --data; `share` is theirs of the places of an epoch."""

    name: str
    samples: Samples
    native: bool
    share: Callable[[int], float]


@dataclass(frozen=True, eq=False)
class Mixture:
    """`samples` are those of --data (`num_own`), then those of each part; `native`: all have one size."""

    samples: Samples
    num_own: int
    parts: tuple[Part, ...]
    native: bool

    @classmethod
    def of(cls, own: Samples, native: bool, parts: Sequence[Part]) -> Mixture:
        """Ids get the number of their data set in front: two data sets may name their images alike."""
        rows = [own, *(part.samples for part in parts)]
        names = tuple(f"{n}:{name}" if n else name for n, row in enumerate(rows) for name in row.ids)
        # Images of one size in each data set may still be of two sizes.
        sizes = {row.pixels.shape(0)[:2] for row in rows if len(row)}
        is_native = native and len(sizes) == 1 and all(part.native for part in parts)
        return cls(joined(rows, names), len(own), tuple(parts), is_native)

    def numbers(self, epoch: int) -> list[int]:
        """The places of --data and of each part; they add up to `num_own`, by the largest remainder."""
        shares = [part.share(epoch) for part in self.parts]
        wanted = np.array([max(0.0, 1 - sum(shares)), *shares]) * self.num_own
        numbers = np.floor(wanted + 1e-9).astype(int)
        missing = self.num_own - int(numbers.sum())
        numbers[np.argsort(-(wanted - numbers), kind="stable")[:missing]] += 1
        return [int(number) for number in numbers]

    def places_by_class(self, classes: tuple[str, ...], epochs: int) -> dict[str, float]:
        """Places of an epoch by class, or label: the images of each data set, weighed by the places that it gets.

        Raises:
            UserError: the shares change over the `epochs`, and the places with them.
        """
        numbers = self.numbers(0)
        if any(self.numbers(epoch) != numbers for epoch in range(epochs)):
            raise UserError(
                "--class-weights balanced: the shares of --mix change over the run, and the classes with them",
                "shares that stay",
                "name the weights (cat=2,dog=1)",
            )
        rows = [self.samples.subset(np.arange(self.num_own)), *(part.samples for part in self.parts)]
        found = [count({"train": row}, classes)["train"] for row in rows]
        return {
            name: round(
                sum(
                    num / len(row) * by_class[name]
                    for num, row, by_class in zip(numbers, rows, found, strict=True)
                ),
                6,  # digits: a label of every image must have exactly as many places as there are
            )
            for name in classes
        }

    def order(self, is_balanced: bool, seed: int, epoch: int) -> np.ndarray:
        """The P places of an epoch, int64: `index + repeat * N`.

        Without a share of another data set this is the order of --data alone.
        """
        numbers = self.numbers(epoch)
        targets = self.samples.targets[: self.num_own]
        if not is_balanced:
            own = epoch_order(self.num_own, seed, epoch)
        elif numbers[0] == self.num_own:
            own = balanced_order(targets, seed, epoch)
        else:
            own = drawn_places(targets, numbers[0], is_balanced, seed, epoch, len(self.parts))
        # Balanced places repeat an image by `+ num_own`; here an image is repeated by `+ N`.
        repeats, indices = np.divmod(own[: numbers[0]], self.num_own)
        found, start = [indices + repeats * len(self.samples)], self.num_own
        for number, (part, num) in enumerate(zip(self.parts, numbers[1:], strict=True)):
            places = drawn_places(part.samples.targets, num, is_balanced, seed, epoch, number)
            repeats, indices = np.divmod(places, len(part.samples))
            found.append(start + indices + repeats * len(self.samples))
            start += len(part.samples)
        places = np.concatenate(found)
        if numbers[0] == self.num_own:
            return places
        return places[counters.generator(seed, epoch, counters.SOURCE).permutation(len(places))]


def drawn_places(
    targets: np.ndarray, num: int, is_balanced: bool, seed: int, epoch: int, number: int
) -> np.ndarray:
    """`num` places of one data set: its images in a shuffled row, again and again; balanced: every class in turn."""
    labels = targets if is_balanced else np.zeros(len(targets), dtype=np.int64)
    rows = []
    for label in np.unique(labels).tolist():
        generator = counters.generator(seed, epoch, counters.SOURCE, 1 + number * 2**20 + label)
        rows.append(generator.permutation(np.flatnonzero(labels == label)))
    turn = np.arange(-(-num // len(rows)))
    columns = [row[turn % len(row)] + turn // len(row) * len(targets) for row in rows]
    return np.stack(columns, axis=1).reshape(-1)[:num]


def training_windows(
    dataset: Dataset, config: Config, epoch: int, weights: np.ndarray | None = None
) -> list[list[np.ndarray]]:
    """The optimizer steps of an epoch: `epoch_windows` of the order that weights, sampler or mixture ask for.

    `weights` (N,) say how often each image of --data comes; the rules keep them apart from other data sets.
    """
    seed, data = config.train.seed, config.data
    if config.meta.is_on:
        return episode_windows(dataset.splits["train"].targets, config, epoch)
    is_balanced = data.sampler == "balanced"
    if weights is not None:
        assert dataset.mixture is None, "weights of the images of one data set"
        order = weighted_order(weights, seed, epoch)
    elif dataset.mixture is not None:
        order = dataset.mixture.order(is_balanced, seed, epoch)
    elif is_balanced:
        order = balanced_order(dataset.splits["train"].targets, seed, epoch)
    else:
        order = epoch_order(len(dataset.splits["train"]), seed, epoch)
    return epoch_windows(order, data.batch_size, config.optim.accumulate)


def balanced_sample(targets: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Sorted indices of at most `num` images, as equally many of every class as there are, by `seed` alone.

    Sets of labels count as classes, as they do where a data set is divided (`splits.strata`).
    """
    labels = strata(targets)
    rows = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        rows.append(counters.generator(seed, 0, counters.REPLAY, label).permutation(members))
    # The first of every class, then the second of every class, and so on.
    ranked = [(rank, label, row) for label, row_of in enumerate(rows) for rank, row in enumerate(row_of)]
    return np.sort(np.array([int(row) for _, _, row in sorted(ranked)[:num]], dtype=np.int64))


def all_classes(
    classes: tuple[str, ...], others: dict[str, tuple[str, ...]], mapping: MixClassesValue
) -> tuple[str, ...]:
    """The classes of a training: those of --data, and with `union` the others' in the order of the data sets."""
    if mapping != UNION:
        return classes
    return tuple(dict.fromkeys((*classes, *(name for found in others.values() for name in found))))


def class_numbers(
    found: tuple[str, ...], classes: tuple[str, ...], mapping: MixClassesValue, flag: str
) -> np.ndarray:
    """int64 (len(found),): the number among `classes` of each class of another data set; `flag` names that.

    Raises:
        UserError: its classes differ and nothing says how they are to be taken, or the mapping does not fit.
    """
    pairs = {} if isinstance(mapping, str) else dict(mapping)
    names = tuple(pairs.get(name, name) for name in found)
    unknown = [name for name in names if name not in classes]
    is_same = set(names) == set(classes)
    if unknown or not (is_same or mapping):
        raise UserError(
            f"{flag} has other classes than the training: {listing(found, 20)}",
            f"the classes {listing(classes, 20)}",
            closest(unknown[0], classes)
            if pairs and unknown
            else "--mix-classes union, or --mix-classes THEIRS=OURS,...",
        )
    return np.array([classes.index(name) for name in names], dtype=np.int64)


def renumbered(samples: Samples, numbers: np.ndarray, num_classes: int) -> Samples:
    """The samples with class `c` as class `numbers[c]` of `num_classes`.

    Raises:
        UserError: masks, whose ids are pixels, would get other numbers.
    """
    is_same = numbers.tolist() == list(range(num_classes))
    if is_same:
        return samples
    if samples.masks is not None:
        raise UserError(
            "masks of another data set number the classes otherwise than those of --data",
            "the same classes in the same order",
            "--mask-remap gives the ids of masks other numbers, in data sets prepared one by one",
        )
    if samples.targets.ndim == 1:
        return samples.with_targets(numbers[samples.targets])
    targets = np.zeros((len(samples), num_classes), dtype=np.uint8)
    for theirs, ours in enumerate(numbers.tolist()):
        targets[:, ours] |= samples.targets[:, theirs]
    return samples.with_targets(targets)
