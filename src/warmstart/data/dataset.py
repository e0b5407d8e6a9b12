"""A data set as a run sees it: opened, scanned, split, limited, counted. Decided once, then recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.division import divide
from warmstart.data.samples import Samples
from warmstart.data.scan import Progress, ScanResult, check_unchanged, read_sizes, scan
from warmstart.data.sources import open_source
from warmstart.data.splits import stratified_limit
from warmstart.data.store import Kept, StorePlan, keep
from warmstart.data.workers import scan_workers
from warmstart.errors import UserError, listing
from warmstart.records import DatasetFacts

Quarantine = tuple[tuple[str, str], ...]  # (id, reason)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits ready for delivery. `native`: all images have one size (facts.heights x facts.widths).

    `divided` is the split of each readable image, before any limit; empty where val came with the data.
    """

    classes: tuple[str, ...]
    splits: dict[str, Samples]  # train; val and test where there are any
    facts: DatasetFacts
    native: bool
    divided: dict[str, str] = field(default_factory=dict)  # id -> split


def split_settings(split: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among what a run records of its division."""
    return {name: split.get(name) for name in ("train_ratio", "val_ratio", "group")}


def open_dataset(
    settings: DataConfig,
    seed: int,
    known_quarantine: Quarantine | None = None,
    on_progress: Progress | None = None,
    for_training: bool = True,
    store: Callable[[tuple[str, ...]], StorePlan] | None = None,
    known_splits: Mapping[str, str] = MappingProxyType({}),
) -> Dataset:
    """Open, scan, split and limit the data of a run. Equal input and files give equal splits.

    Where we divide, images of `known_splits` (id -> split) stay where they were, and only others are divided.

    `known_quarantine` (a resumed run's) replaces the scan: those samples are dropped and sizes come
    from the headers. `on_progress(done, total)` counts images over all splits.
    Without `for_training` the data are taken as they are: nothing is split or limited, and one class,
    no train split or classes without training images are no errors.
    `store` says, given the class names, where decoded images are kept and at which size; without it, or
    where they cannot be kept, each is decoded when it is delivered.
    """
    if settings.path is None:
        raise UserError("no data set is named", "class folders, IDX files, CSV or parquet", "add --data PATH")
    source = open_source(
        settings.path,
        allow_single_class=not for_training,
        group=settings.group,
        label_columns=settings.label_columns,
        download=settings.download,
    )
    plan = store(source.classes) if store is not None else None
    scanned, results = _look(source.splits, settings, plan, known_quarantine, on_progress)
    quarantine = known_quarantine
    if quarantine is None:
        quarantine = tuple(row for result in results.values() for row in result.corrupt)
        _check_corrupt(quarantine, source.splits, settings.max_corrupt)
    readable = {split: scanned[split].subset(results[split].good) for split in scanned}
    splits, divided, notes = _divide(readable, settings, seed, known_splits if for_training else None)
    counts = _count(splits, source.classes)
    notes += _check_counts(counts, settings, for_training)
    heights, widths, channels = _sizes(results)
    facts = DatasetFacts(
        classes=source.classes,
        counts=counts,
        sizes={split: len(samples) for split, samples in splits.items()},
        heights=_spread(heights),
        widths=_spread(widths),
        num_channels=_num_channels(channels, [name for split in readable.values() for name in split.ids]),
        quarantined=quarantine,
        notes=(*source.notes, *_first_frames(scanned, results), *notes),
        fingerprint=source.fingerprint,
    )
    native = bool((heights == heights[0]).all() and (widths == widths[0]).all())
    return Dataset(source.classes, splits, facts, native, divided)


def _divide(
    readable: dict[str, Samples], settings: DataConfig, seed: int, known: Mapping[str, str] | None
) -> tuple[dict[str, Samples], dict[str, str], list[str]]:
    """The splits of a run, the split of every image where it was ours to say, and notes; None: as they are."""
    if known is None:
        return readable, {}, []
    splits, notes = divide(readable, settings, seed, known)
    if "train" not in splits:
        raise UserError(
            f"{settings.path} has {listing(splits)} but no train split",
            "a train split",
            "call one of the splits train",
        )
    divided = {}
    if "val" not in readable:
        divided = {name: split for split, samples in splits.items() for name in samples.ids}
    if settings.limit is not None:
        kept = stratified_limit(splits["train"].targets, settings.limit, seed)
        notes.append(f"limit {settings.limit}: {len(kept)} of {len(splits['train'])} training images")
        splits = {**splits, "train": splits["train"].subset(kept)}
    return splits, divided, notes


def _look(
    splits: dict[str, Samples],
    settings: DataConfig,
    plan: StorePlan | None,
    known: Quarantine | None,
    on_progress: Progress | None,
) -> tuple[dict[str, Samples], dict[str, ScanResult]]:
    """The samples, out of a store where there is one, and what is seen of every image, per split."""
    workers = scan_workers(settings.workers)
    stored = keep(splits, plan, workers, on_progress) if plan is not None else None
    if stored is not None:
        return _from_store(stored, known)
    return _examine(splits, workers, known, on_progress)


def _from_store(kept: Kept, known: Quarantine | None) -> tuple[dict[str, Samples], dict[str, ScanResult]]:
    """As `_examine`, for images that are in a store."""
    samples = {split: found for split, (found, _) in kept.items()}
    results = {split: result for split, (_, result) in kept.items()}
    if known is None:
        return samples, results
    dropped = {name for name, _ in known}
    for split, found in samples.items():
        rows = np.array([i for i, name in enumerate(found.ids) if name not in dropped], dtype=np.int64)
        samples[split] = found.subset(rows)
        results[split] = results[split].subset(rows, frozenset(samples[split].ids))
        check_unchanged(results[split])
    return samples, results


def _examine(
    splits: dict[str, Samples], workers: int, known: Quarantine | None, on_progress: Progress | None
) -> tuple[dict[str, Samples], dict[str, ScanResult]]:
    """The samples that were looked at, and what was seen, per split."""
    if known is not None:
        dropped = {name for name, _ in known}
        splits = {split: _without(samples, dropped) for split, samples in splits.items()}
    total, before, results = sum(map(len, splits.values())), 0, {}
    for split, samples in splits.items():

        def report(done: int, _: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + done, total)

        look = scan if known is None else read_sizes
        results[split] = look(samples, workers, report)
        before += len(samples)
    return splits, results


def _without(samples: Samples, names: set[str]) -> Samples:
    return samples.subset(
        np.array([i for i, name in enumerate(samples.ids) if name not in names], dtype=np.int64)
    )


def _check_corrupt(quarantine: Quarantine, splits: dict[str, Samples], max_corrupt: float) -> None:
    total = sum(map(len, splits.values()))
    share = len(quarantine) / total
    if share > max_corrupt or len(quarantine) == total:
        named = listing((f"{name} ({reason})" for name, reason in quarantine), 5)
        raise UserError(
            f"{len(quarantine)} of {total} images ({share:.1%}) are unreadable: {named}",
            f"at most {max_corrupt:.1%} (--max-corrupt)",
            "replace or remove these files, or raise --max-corrupt: unreadable images are then left out",
        )
    bad = {name for name, _ in quarantine}
    lost = [split for split, samples in splits.items() if len(samples) and bad.issuperset(samples.ids)]
    if lost:
        raise UserError(
            f"no image of the splits {listing(lost)} can be read: {listing((f'{n} ({r})' for n, r in quarantine), 5)}",
            "at least one readable image in every split",
            "replace these files, or remove the split",
        )


def _count(splits: dict[str, Samples], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Images per split and class, or label: an image of several labels counts for each."""
    counts = {}
    for split, samples in splits.items():
        if samples.targets.ndim == 1:
            numbers = np.bincount(samples.targets, minlength=len(classes))
        else:
            numbers = samples.targets.sum(axis=0, dtype=np.int64)
        counts[split] = dict(zip(classes, numbers.tolist(), strict=True))
    return counts


def _check_counts(counts: dict[str, dict[str, int]], settings: DataConfig, for_training: bool) -> list[str]:
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


def _sizes(results: dict[str, ScanResult]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights, widths and channels of all readable images of all splits."""
    parts = [(r.heights[r.good], r.widths[r.good], r.channels[r.good]) for r in results.values()]
    heights, widths, channels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return heights, widths, channels


def _num_channels(channels: np.ndarray, ids: list[str]) -> int:
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


def _first_frames(scanned: dict[str, Samples], results: dict[str, ScanResult]) -> list[str]:
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


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())
