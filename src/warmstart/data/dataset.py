"""A data set as a run sees it: opened, scanned, split, limited, counted. Decided once, then recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.division import divide
from warmstart.data.facts import (
    check_counts,
    count,
    first_frames,
    num_channels,
    pixels_by_class,
    sizes,
    spread,
)
from warmstart.data.geometry import MaskRules
from warmstart.data.mask_scan import (
    MaskCounts,
    check_sizes,
    check_still_readable,
    count_masks,
    keep_masks,
    phases,
    with_classes,
)
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.mixture import Mixture
from warmstart.data.samples import Samples, Source
from warmstart.data.scan import Progress, ScanResult, check_unchanged, read_sizes, scan
from warmstart.data.sources import open_source
from warmstart.data.splits import stratified_limit
from warmstart.data.store import Kept, keep
from warmstart.data.store_plan import StorePlan
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
    mask_rules: MaskRules | None = None  # of index masks; None: no segmentation
    mixture: Mixture | None = None  # with images of other data sets
    captions: Mapping[str, object] | None = None  # id -> text, where a column of them was asked for

    @property
    def training(self) -> Samples:
        """What is trained on: the training images, and those of other data sets that are mixed in."""
        return self.splits["train"] if self.mixture is None else self.mixture.samples

    @property
    def ignore(self) -> int | None:
        """The id of masks that belongs to no class; None where there are no masks."""
        return None if self.mask_rules is None else self.mask_rules.ignore


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of its data when they were opened before.

    `quarantine` (a resumed run's) replaces the scan: those samples are dropped and sizes come from the headers. Where
    we divide, images of `splits` (id -> split) stay where they were, and only others are divided.
    """

    quarantine: Quarantine | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


_NOTHING = Recorded()


def split_settings(split: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among what a run records of its division."""
    return {name: split.get(name) for name in ("train_ratio", "val_ratio", "group")}


def open_dataset(
    settings: DataConfig,
    seed: int,
    recorded: Recorded = _NOTHING,
    on_progress: Progress | None = None,
    for_training: bool = True,
    store: Callable[[tuple[str, ...]], StorePlan] | None = None,
    captions: str | None = None,
) -> Dataset:
    """Open, scan, split and limit the data of a run. Equal input and files give equal splits.

    `on_progress(done, total)` counts images over all splits.
    Without `for_training` the data are taken as they are: nothing is split or limited, and one class,
    no train split or classes without training images are no errors.
    `store` says, given the class names, where decoded images are kept and at which size; without it, or
    where they cannot be kept, each is decoded when it is delivered. `captions` names a column of texts.
    """
    if settings.path is None:
        raise UserError("no data set is named", "class folders, IDX files, CSV or parquet", "add --data PATH")
    source = open_source(
        settings.path,
        allow_single_class=not for_training,
        group=settings.group,
        label_columns=settings.label_columns,
        download=settings.download,
        masks=MaskSettings.of(settings),
        captions=captions,
    )
    progress = phases(on_progress, 1 if source.ignore is None else 3)
    source, counts, rules = _counted(source, settings, for_training, store is not None, progress(0))
    plan = store(source.classes) if store is not None else None
    if counts is not None and plan is not None:
        source = keep_masks(source, plan, scan_workers(settings.workers), progress(1))
    scanned, results = _look(source.splits, settings, plan, recorded.quarantine, progress(2 if counts else 0))
    quarantine = recorded.quarantine
    if quarantine is None:
        quarantine = _unreadable(results, counts)
        _check_corrupt(quarantine, source.splits, settings.max_corrupt)
    readable, results = _readable(scanned, results, quarantine, counts)
    splits, divided, notes = _divide(readable, settings, seed, recorded.splits if for_training else None)
    numbers = count(splits, source.classes)
    notes += check_counts(numbers, settings, for_training and counts is None)
    heights, widths, channels = sizes(results)
    facts = DatasetFacts(
        classes=source.classes,
        counts=numbers,
        sizes={split: len(samples) for split, samples in splits.items()},
        heights=spread(heights),
        widths=spread(widths),
        num_channels=num_channels(channels, [name for split in readable.values() for name in split.ids]),
        quarantined=quarantine,
        notes=(*source.notes, *first_frames(readable, results), *notes),
        fingerprint=source.fingerprint,
        ignore=source.ignore,
        pixels=None if counts is None else pixels_by_class(splits, source.classes, counts),
    )
    native = bool((heights == heights[0]).all() and (widths == widths[0]).all())
    return Dataset(source.classes, splits, facts, native, divided, rules, captions=source.captions)


def _counted(
    source: Source, settings: DataConfig, for_training: bool, kept: bool, on_progress: Progress | None
) -> tuple[Source, MaskCounts | None, MaskRules | None]:
    """The source with classes and targets by its masks, and what follows from them; None where it has none.

    `kept`: what was counted is kept for the next time.
    """
    if source.ignore is None:
        return source, None, None
    if settings.mixup:
        raise UserError(
            f"--mixup {settings.mixup:g}: {settings.path} has index masks, whose ids cannot be blended",
            "--cutmix, which moves boxes of the masks with their pixels",
            "leave --mixup out",
        )
    counts = count_masks(source.splits, settings, scan_workers(settings.workers), kept, on_progress)
    _check_corrupt(counts.corrupt, source.splits, settings.max_corrupt)
    source = with_classes(source, counts, str(settings.path), for_training)
    assert source.ignore is not None
    return source, counts, MaskSettings.of(settings).rules(source.classes, source.ignore)


def _unreadable(results: dict[str, ScanResult], counts: MaskCounts | None) -> Quarantine:
    """(id, reason) of images, and of images whose masks cannot be read."""
    reasons = {} if counts is None else dict(counts.corrupt)
    reasons |= {name: reason for result in results.values() for name, reason in result.corrupt}
    return tuple(reasons.items())


def _readable(
    scanned: dict[str, Samples],
    results: dict[str, ScanResult],
    quarantine: Quarantine,
    counts: MaskCounts | None,
) -> tuple[dict[str, Samples], dict[str, ScanResult]]:
    """What is left of the samples and of what was seen of them. Raises UserError for masks of another size."""
    bad = {name for name, _ in quarantine}
    if counts is not None:
        check_still_readable(counts, bad)
    left = {split: _left(samples, results[split], bad) for split, samples in scanned.items()}
    readable = {split: samples for split, (samples, _) in left.items()}
    results = {split: result for split, (_, result) in left.items()}
    if counts is not None:
        check_sizes(readable, results, counts)
    return readable, results


def _left(samples: Samples, result: ScanResult, bad: set[str]) -> tuple[Samples, ScanResult]:
    """The readable samples of a split that are not bad for another reason."""
    rows = result.good
    if bad:
        rows = np.array([row for row in rows.tolist() if samples.ids[row] not in bad], dtype=np.int64)
    return samples.subset(rows), result.subset(rows, frozenset())


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
        splits = {split: samples.without(dropped) for split, samples in splits.items()}
    total, before, results = sum(map(len, splits.values())), 0, {}
    for split, samples in splits.items():

        def report(done: int, _: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + done, total)

        look = scan if known is None else read_sizes
        results[split] = look(samples, workers, report)
        before += len(samples)
    return splits, results


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
