"""A data set as a run sees it: opened, scanned, split, limited, counted. Decided once, then recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.samples import Samples
from warmstart.data.scan import Progress, ScanResult, read_sizes, scan
from warmstart.data.sources import open_source
from warmstart.data.splits import stratified_limit, stratified_split
from warmstart.data.workers import scan_workers
from warmstart.errors import UserError, listing
from warmstart.records import DatasetFacts

Quarantine = tuple[tuple[str, str], ...]  # (id, reason)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits ready for delivery. `native`: all images have one size (facts.heights x facts.widths)."""

    classes: tuple[str, ...]
    splits: dict[str, Samples]  # train; val and test where there are any
    facts: DatasetFacts
    native: bool


def open_dataset(
    settings: DataConfig,
    seed: int,
    known_quarantine: Quarantine | None = None,
    on_progress: Progress | None = None,
    for_training: bool = True,
) -> Dataset:
    """Open, scan, split and limit the data of a run. Equal input and files give equal splits.

    `known_quarantine` (a resumed run's) replaces the scan: those samples are dropped and sizes come
    from the headers. `on_progress(done, total)` counts images over all splits.
    Without `for_training` the data are taken as they are: nothing is split or limited, and one class,
    no train split or classes without training images are no errors.
    """
    if settings.path is None:
        raise UserError("no data set is named", "class folders, IDX files, CSV or parquet", "add --data PATH")
    source = open_source(settings.path, allow_single_class=not for_training)
    scanned, results = _examine(source.splits, scan_workers(settings.workers), known_quarantine, on_progress)
    quarantine = known_quarantine
    if quarantine is None:
        quarantine = tuple(row for result in results.values() for row in result.corrupt)
        _check_corrupt(quarantine, source.splits, settings.max_corrupt)
    readable = {split: scanned[split].subset(results[split].good) for split in scanned}
    splits, notes = _resolve_splits(readable, settings, seed) if for_training else (readable, [])
    if "train" not in splits and for_training:
        raise UserError(
            f"{settings.path} has {listing(splits)} but no train split",
            "a train split",
            "call one of the splits train",
        )
    if settings.limit is not None and for_training:
        kept = stratified_limit(splits["train"].targets, settings.limit, seed)
        notes.append(f"limit {settings.limit}: {len(kept)} of {len(splits['train'])} training images")
        splits = {**splits, "train": splits["train"].subset(kept)}
    counts = _count(splits, source.classes)
    notes += _check_counts(counts, settings, for_training)
    heights, widths, channels = _sizes(results)
    facts = DatasetFacts(
        classes=source.classes,
        counts=counts,
        heights=_spread(heights),
        widths=_spread(widths),
        num_channels=1 if (channels == 1).all() else 3,
        quarantined=quarantine,
        notes=(*source.notes, *notes),
        fingerprint=source.fingerprint,
    )
    native = bool((heights == heights[0]).all() and (widths == widths[0]).all())
    return Dataset(source.classes, splits, facts, native)


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


def _resolve_splits(
    found: dict[str, Samples], settings: DataConfig, seed: int
) -> tuple[dict[str, Samples], list[str]]:
    """train, and val and test where there are any; with the sentences that say how they came about."""
    train_ratio, val_ratio = settings.train_ratio, settings.val_ratio
    if "all" in found:
        rest = 1 - train_ratio - val_ratio
        shares = {"train": train_ratio, "val": val_ratio, "test": rest if rest > 1e-9 else 0.0}
        splits = _split(found["all"], shares, seed)
        missing = [name for name, share in shares.items() if share > 0 and name not in splits]
        notes = [f"too few images per class for a {name} split" for name in missing]
        sizes = ", ".join(f"{name} {len(samples)}" for name, samples in splits.items())
        return splits, [f"no splits given: divided by train_ratio and val_ratio into {sizes}", *notes]
    names = listing(found)
    if "val" in found:
        return found, [f"splits as given: {names}; train_ratio and val_ratio have no effect"]
    if val_ratio == 0:
        return found, [f"splits as given: {names}; no validation images, as val_ratio is 0"]
    carved = _split(found["train"], {"train": train_ratio, "val": val_ratio}, seed)
    if "val" not in carved:
        return found, [
            f"splits as given: {names}; too few training images per class to make a val split of them"
        ]
    share = val_ratio / (train_ratio + val_ratio)
    note = (
        f"no val split: {len(carved['val'])} of {len(found['train'])} training images"
        f" (val_ratio / (train_ratio + val_ratio) = {share:.3g}) became val; test as given"
    )
    return {**carved, "test": found["test"]}, [note]


def _split(samples: Samples, shares: dict[str, float], seed: int) -> dict[str, Samples]:
    wanted = {name: share for name, share in shares.items() if share > 0}
    parts = stratified_split(samples.targets, wanted, seed)
    return {name: samples.subset(indices) for name, indices in parts.items() if len(indices)}


def _count(splits: dict[str, Samples], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(classes, np.bincount(samples.targets, minlength=len(classes)).tolist(), strict=True))
        for split, samples in splits.items()
    }


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


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())
