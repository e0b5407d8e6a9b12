"""Counting the ids of all masks once, at full size: which classes occur where, and whether all is as it must be.

The counts of a mask are kept like its pixels (store.py), so only new masks are decoded again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.cache_folder import cache_root
from warmstart.data.mask_settings import IGNORE, LARGEST
from warmstart.data.masks import MaskPixels, as_ids, is_wide
from warmstart.data.samples import Samples, Source
from warmstart.data.scan import Progress, ScanResult, check_unchanged
from warmstart.data.store import keep
from warmstart.data.store_plan import StorePlan
from warmstart.errors import UserError, listing

_COUNT = np.dtype([("id", "<u4"), ("pixels", "<u8")])
_FEW = 3  # masks with ids of their own: a mistake in them rather than classes
_USUAL = 16  # ids in a mask, to guess how much room their counts take
_UNLIMITED = (sys.maxsize, sys.maxsize)  # no table of counts is ever shrunk


@dataclass(frozen=True, eq=False)
class _Counts:
    """Masks as tables of _COUNT, in bytes like an image; the first row is their height and width."""

    decoded: ClassVar[bool] = False
    masks: MaskPixels

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int) -> np.ndarray:
        ids = as_ids(self.masks.read(index))
        numbers = np.bincount(ids.reshape(-1))
        found = np.flatnonzero(numbers)
        table = np.empty(1 + len(found), dtype=_COUNT)
        table[0] = ids.shape
        table["id"][1:], table["pixels"][1:] = found, numbers[found]
        return table.view(np.uint8).reshape(len(table), _COUNT.itemsize, 1)

    def shape(self, index: int) -> tuple[int, int, int]:
        return _USUAL, _COUNT.itemsize, 1

    def has_more_frames(self, index: int) -> bool:
        return self.masks.has_more_frames(index)

    def stamp(self, index: int) -> bytes:
        return self.masks.stamp(index)

    def subset(self, indices: np.ndarray) -> _Counts:
        return _Counts(self.masks.subset(indices))


@dataclass(frozen=True, eq=False)
class MaskCounts:
    """What the masks of all splits hold: a row for each id of each readable mask."""

    names: np.ndarray  # of images, str (M,)
    sizes: dict[str, tuple[int, int]]  # image -> height and width of its mask
    corrupt: tuple[tuple[str, str], ...]  # (id of the image, reason)
    rows: np.ndarray  # int64 (R,), places in `names`
    ids: np.ndarray  # int64 (R,)
    pixels: np.ndarray  # int64 (R,)

    def total(self) -> dict[int, int]:
        """Id -> its pixels in all masks."""
        found, places = np.unique(self.ids, return_inverse=True)
        return dict(zip(found.tolist(), _sums(places, self.pixels, len(found)).tolist(), strict=True))

    def holding(self, ids: list[int]) -> list[str]:
        """The images whose masks hold one of these ids."""
        return list(dict.fromkeys(self.names[self.rows[np.isin(self.ids, ids)]].tolist()))

    def of(self, names: tuple[str, ...], num_classes: int) -> np.ndarray:
        """Pixels of each class, and at last of all other ids, in the masks of some images: int64 (K + 1,)."""
        chosen = np.isin(self.names, np.array(names))[self.rows]
        return _sums(np.minimum(self.ids[chosen], num_classes), self.pixels[chosen], num_classes + 1)


def _sums(places: np.ndarray, pixels: np.ndarray, num: int) -> np.ndarray:
    """int64 (num,); the floats in between are exact up to 2^53 pixels."""
    return np.bincount(places, pixels, num).astype(np.int64)


def count_masks(
    splits: dict[str, Samples], settings: DataConfig, workers: int, kept: bool, on_progress: Progress | None
) -> MaskCounts:
    """Count the ids of every mask; `kept`: the counts are looked up and kept where decoded images are."""
    mode = "ram" if not kept or settings.cache == "off" else settings.cache
    plan = StorePlan(mode, cache_root(settings.cache_dir), _UNLIMITED, 1, True, "masks to count their ids")
    found = keep({split: _counted(samples) for split, samples in splits.items()}, plan, workers, on_progress)
    if found is None:  # the disk is full
        return count_masks(splits, settings, workers, False, on_progress)
    names: list[str] = []
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    sizes: dict[str, tuple[int, int]] = {}
    corrupt: list[tuple[str, str]] = []
    for samples, result in found.values():
        corrupt += [(name, f"its mask: {reason}") for name, reason in result.corrupt]
        for index in result.good.tolist():
            table = samples.pixels.read(index).reshape(-1).view(_COUNT)
            sizes[samples.ids[index]] = int(table["id"][0]), int(table["pixels"][0])
            parts = np.full(len(table) - 1, len(names)), table["id"][1:], table["pixels"][1:]
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
            names.append(samples.ids[index])
    rows, ids, pixels = (np.concatenate([*column, []]).astype(np.int64) for column in columns)
    return MaskCounts(np.array(names, dtype=str), sizes, tuple(corrupt), rows, ids, pixels)


def _counted(samples: Samples) -> Samples:
    assert isinstance(samples.masks, MaskPixels)
    return replace(samples, pixels=_Counts(samples.masks), masks=None)


def with_classes(source: Source, counts: MaskCounts, place: str, for_training: bool) -> Source:
    """The source with its classes and what each image holds of them. Raises UserError for ids that fit no class."""
    assert source.ignore is not None
    total = counts.total()
    classes = source.classes or _numbers(counts, source.ignore, place)
    _check_ids(classes, total, source.ignore, counts, place)
    used = [number for number in total if number != source.ignore]
    if len(classes) < 2 or (for_training and len(used) < 2):
        raise UserError(
            f"the masks of {place} hold one class only: {_histogram(total, source.ignore)}",
            "at least two classes",
            _likely(total, source.ignore, len(classes)),
        )
    places = {name: number for number, name in enumerate(counts.names.tolist())}
    # The last row: masks that cannot be read.
    held = np.zeros((len(places) + 1, len(classes)), dtype=np.uint8)
    is_class = counts.ids < len(classes)
    held[counts.rows[is_class], counts.ids[is_class]] = 1
    wide = max(len(classes) - 1, source.ignore) > 255
    splits = {}
    for split, samples in source.splits.items():
        assert isinstance(samples.masks, MaskPixels)
        masks = replace(samples.masks, coding=replace(samples.masks.coding, wide=wide))
        targets = held[[places.get(name, len(places)) for name in samples.ids]]
        splits[split] = replace(samples, targets=targets, masks=masks)
    share = total.get(source.ignore, 0) / max(1, sum(total.values()))
    note = f"index masks of {len(classes)} classes; the id {source.ignore} of {share:.1%} of the pixels is ignored"
    histogram = f"pixels by id: {_histogram(total, source.ignore)}"
    return replace(source, classes=classes, splits=splits, notes=(*source.notes, note, histogram))


def _numbers(counts: MaskCounts, ignore: int, place: str) -> tuple[str, ...]:
    """Classes called by their numbers, from 0 to the largest id. Raises UserError where few of them occur."""
    total = counts.total()
    used = [number for number in total if number != ignore]
    num = max(used, default=-1) + 1
    if num > 2 * len(used):
        raise UserError(
            f"the masks of {place} hold {len(used)} ids between 0 and {num - 1}: {_histogram(total, ignore)}",
            "ids from 0 on that number the classes",
            _strays(counts, sorted(used), ignore)
            or (_likely(total, ignore, len(used) - 1) if 255 in used else _renumbered(used)),
        )
    if ignore < num:
        moved = [(ignore, IGNORE), *((number, number - 1) for number in range(ignore + 1, num))]
        remap = ",".join(f"{old}={new}" for old, new in moved)
        raise UserError(
            f"the ignored id {ignore} lies among the ids of {place}: {_histogram(total, ignore)}",
            "classes from 0 on without a gap, and an ignored id beyond them",
            f"--mask-remap {remap}, without --ignore" if num <= IGNORE else f"--ignore {LARGEST}",
        )
    return tuple(map(str, range(num)))


def _strays(counts: MaskCounts, used: list[int], ignore: int) -> str:
    """Where all ids beyond the first gap are in few masks only: these masks; else nothing."""
    gap = next((place for place, number in enumerate(used) if number != place), len(used))
    strays = used[gap:]
    files = counts.holding(strays)
    if gap < 2 or len(files) > max(_FEW, len(counts.names) // 100):
        return ""
    pairs = ",".join(f"{number}={ignore}" for number in strays[:20])
    classes = (
        f"if they are classes: {renumbered}" if (renumbered := _renumbered(used)) else "name the classes"
    )
    return (
        f"only these masks hold {listing(strays, 4)}: {listing(files, 3)}. Mend them, or ignore these pixels: "
        f"--mask-remap {pairs}; {classes}"
    )


def _renumbered(used: list[int]) -> str:
    pairs = [f"{old}={new}" for new, old in enumerate(sorted(used)) if old != new]
    return f"--mask-remap {','.join(pairs)}" if len(used) <= 64 else "--mask-remap, or --mask-classes"


def _check_ids(
    classes: tuple[str, ...], total: dict[int, int], ignore: int, counts: MaskCounts, place: str
) -> None:
    strange = [number for number in sorted(total) if number >= len(classes) and number != ignore]
    if not strange:
        return
    files = counts.holding(strange)
    raise UserError(
        f"masks of {len(files)} images hold ids that are no class: {listing(strange)}, in {listing(files, 3)};"
        f" all of {place}: {_histogram(total, ignore)}",
        f"0 to {len(classes) - 1} ({listing(classes, 6)}), or the ignored id {ignore}",
        _likely(total, ignore, len(classes)),
    )


def _likely(total: dict[int, int], ignore: int, num_classes: int) -> str:
    """What probably went wrong, as the setting that mends it."""
    ids = sorted(total)
    strange = [number for number in ids if number >= num_classes and number != ignore]
    if ids == [0, 255]:
        return "if 255 is the second class: --mask-remap 255=1"
    if ids and ids[0] > 0 and ids[-1] == num_classes:
        pairs = ",".join(f"{number}={number - 1}" for number in range(1, num_classes + 1))
        return f"if the ids start at 1: --mask-remap {pairs}"
    if strange in ([num_classes], [255]):
        return f"if {strange[0]} stands for no class: --ignore {strange[0]}; else name it (--mask-classes)"
    if strange:
        pairs = ",".join(f"{number}={ignore}" for number in strange[:20])
        return f"name all classes (--mask-classes), or ignore these: --mask-remap {pairs}"
    return ""


def _histogram(total: dict[int, int], ignore: int) -> str:
    """`0 41.2 %, 1 58.8 %, 255 (ignored) 0.1 %`."""
    pixels = max(1, sum(total.values()))
    return listing(
        (
            f"{number}{' (ignored)' if number == ignore else ''} {count / pixels:.1%}"
            for number, count in sorted(total.items())
        ),
        40,
    )


def check_sizes(splits: dict[str, Samples], results: dict[str, ScanResult], counts: MaskCounts) -> None:
    """Raise UserError for masks that are not of the size of their image."""
    wrong = []
    for split, samples in splits.items():
        for index in results[split].good.tolist():
            size = int(results[split].heights[index]), int(results[split].widths[index])
            mask = counts.sizes[samples.ids[index]]
            if mask != size:
                wrong.append((samples.ids[index], size, mask))
    if wrong:
        told = (f"{name} ({_written(size)}, its mask {_written(mask)})" for name, size, mask in wrong)
        is_turned = all(size == mask[::-1] for _, size, mask in wrong)
        num = sum(map(len, splits.values()))
        raise UserError(
            f"{len(wrong)} of {num} masks are not of the size of their image: {listing(told, 4)}",
            "a mask with an id for every pixel of its image",
            "if the images are turned by their EXIF orientation, save them upright"
            if is_turned
            else "resize these masks without mixing ids (nearest neighbour), or their images",
        )


def _written(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def keep_masks(source: Source, plan: StorePlan, workers: int, on_progress: Progress | None) -> Source:
    """The source with its masks in the store of their images, where there is one."""
    splits = source.splits
    (wide,) = {is_wide(samples.masks) for samples in splits.values() if samples.masks is not None}
    alone = {
        split: replace(s, pixels=s.masks, masks=None) for split, s in splits.items() if s.masks is not None
    }
    kept = keep(alone, plan.for_masks(wide), workers, on_progress)
    if kept is None:
        return source
    stored = {split: replace(samples, masks=kept[split][0].pixels) for split, samples in splits.items()}
    return replace(source, splits=stored)


def check_still_readable(counts: MaskCounts, dropped: set[str]) -> None:
    """Raise UserError for a mask that a run could read when it started, and that cannot be read now."""
    corrupt = tuple(row for row in counts.corrupt if row[0] not in dropped)
    check_unchanged(ScanResult(corrupt, *np.zeros((4, 0), dtype=np.int64)))


def phases(on_progress: Progress | None, num: int) -> Callable[[int], Progress | None]:
    """The progress of `num` passes over the images, one after the other, as one."""
    if on_progress is None:
        return lambda number: None

    def of(number: int) -> Progress:
        return lambda done, total: on_progress(number * total + done, num * total)

    return of
