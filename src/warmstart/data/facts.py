"""Numbers of a data set: images by class, sizes, channels, pixels by class; and what they rule out."""

from __future__ import annotations

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.mask_scan import MaskCounts
from warmstart.data.samples import Samples
from warmstart.data.scan import ScanResult
from warmstart.errors import UserError, listing


def count(splits: dict[str, Samples], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Images per split and class, or label: an image of several labels counts for each."""
    counts = {}
    for split, samples in splits.items():
        if samples.targets.ndim == 1:
            numbers = np.bincount(samples.targets, minlength=len(classes))
        else:
            numbers = samples.targets.sum(axis=0, dtype=np.int64)
        counts[split] = dict(zip(classes, numbers.tolist(), strict=True))
    return counts


def check_counts(counts: dict[str, dict[str, int]], settings: DataConfig, for_training: bool) -> list[str]:
    """Raise UserError for a class without training images; say where another split lacks one."""
    lacking = {split: [name for name, number in row.items() if number == 0] for split, row in counts.items()}
    if for_training and lacking["train"]:
        limit = f" after limit {settings.limit}" if settings.limit is not None else ""
        raise UserError(
            f"classes without training images{limit}: {listing(lacking['train'])}",
            "at least one training image per class",
            "raise --limit or --train-ratio, or add images"
            if limit
            else "add images, or raise --train-ratio",
        )
    return [f"{split} has no image of {listing(names)}" for split, names in lacking.items() if names]


def sizes(results: dict[str, ScanResult]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights, widths and channels of all readable images of all splits."""
    parts = [(r.heights[r.good], r.widths[r.good], r.channels[r.good]) for r in results.values()]
    heights, widths, channels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return heights, widths, channels


def num_channels(channels: np.ndarray, ids: list[str]) -> int:
    """Of all images: 1 or 3 where they are grey and RGB, else the one number that they must share."""
    numbers, counts = np.unique(channels, return_counts=True)
    if len(numbers) > 1 and not set(numbers.tolist()) <= {1, 3}:
        usual = numbers[counts.argmax()]
        told = listing(
            f"{num} images have {number}"
            + (
                ""
                if number == usual
                else f" ({listing((ids[row] for row in np.flatnonzero(channels == number)), 3)})"
            )
            for number, num in zip(numbers, counts, strict=True)
        )
        raise UserError(
            f"the images differ in the number of channels: {told}",
            "one number, or grey (1) and RGB (3)",
            "keep the images of one kind",
        )
    return int(numbers.max())


def first_frames(scanned: dict[str, Samples], results: dict[str, ScanResult]) -> list[str]:
    """The note on animations and files of several pages."""
    names = [
        scanned[split].ids[row]
        for split, result in results.items()
        for row in np.flatnonzero(result.more_frames)
    ]
    what = (
        f"{len(names)} images have several frames or pages, of which the first is taken: {listing(names, 4)}"
    )
    return [what] if names else []


def spread(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def pixels_by_class(
    splits: dict[str, Samples], classes: tuple[str, ...], counts: MaskCounts
) -> dict[str, int]:
    """Pixels of each class, and of none, in the training images; in all where there are none."""
    samples = [splits["train"]] if "train" in splits else list(splits.values())
    numbers = sum(counts.of(part.ids, len(classes)) for part in samples)
    return dict(zip((*classes, "(ignored)"), np.asarray(numbers).tolist(), strict=True))
