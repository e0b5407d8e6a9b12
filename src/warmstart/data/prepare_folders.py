"""Images as they were collected -> train, val and test folders of class folders, all of them written or none.

Files are copied: a link would let a change of the copy change the collection. Nothing is resized or encoded anew.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from warmstart.config.places import absolute, is_path
from warmstart.config.schema import DataConfig
from warmstart.console import log
from warmstart.data.folder_writer import places_of, records_of, write_folders
from warmstart.data.folders import PREPARED, is_hidden
from warmstart.data.leakage import joined
from warmstart.data.mask_scan import phases
from warmstart.data.pool import (
    NO_GROUP,
    Pool,
    contradictions,
    count_words,
    digests_of,
    kept,
    open_pictures,
    split_shares,
    words_of,
)
from warmstart.data.preparation import Preparation, leaks_of
from warmstart.data.raw_folders import open_raw_folders
from warmstart.data.samples import Source
from warmstart.data.scan import Progress, scan
from warmstart.data.splits import group_split, stratified_split
from warmstart.data.workers import scan_workers
from warmstart.errors import UserError, closest, listing


@dataclass(frozen=True)
class Wanted:
    """Which classes to take, by name or the `num_classes` with the most images; none named: all.

    `validate` decodes every image, not only its header; `innermost`: see open_raw_folders.
    """

    classes: tuple[str, ...] = ()
    num_classes: int | None = None
    validate: bool = False
    innermost: bool = False


def prepare_folders(
    data: str,
    output_dir: str,
    settings: DataConfig,
    wanted: Wanted,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Preparation:
    """Copy the images at `data` to `output_dir`/SPLIT/CLASS/NAME, with a record of what was done beside them.

    Of `settings`, group, train_ratio and val_ratio count. Every class is in every split, by its share; images that are
    the same, byte for byte, are in one. Splits that the data have are counted and given up. Until all is written it
    lies in a hidden folder beside `output_dir`, so that an interrupted preparation is none.

    Raises UserError for data without one class per image, classes that are not there or too small for the splits, an
    output folder in use or inside of the data, and a disk that refuses.
    """
    target = _target(output_dir, data)
    source = open_pictures(data, settings.group, partial(open_raw_folders, innermost=wanted.innermost))
    source, notes = _chosen(source, wanted)
    _check_names(source.classes)
    progress = phases(on_progress, 3 if wanted.validate else 2)
    log.info("reading %d images of %d classes", sum(map(len, source.splits.values())), len(source.classes))
    source, broken = _decoded(source, progress(0)) if wanted.validate else (source, ())
    found, unread = digests_of(Pool.of(source), progress(int(wanted.validate)))
    source = _readable(source, np.array([digest is not None for digest in found]))
    pool, digests = Pool.of(source), [digest for digest in found if digest is not None]
    shares = split_shares(settings.train_ratio, settings.val_ratio)
    words, groups = _divided(pool, digests, shares, seed)
    counts = count_words(words, pool.targets, source.classes, list(shares))
    _check_counts(counts, pool, digests, source.classes)
    single = words_of(stratified_split(pool.targets, shares, seed), len(pool.ids))
    result = Preparation(
        path=output_dir,
        counts=counts,
        num_groups=int(groups.max()) + 1,
        num_copies=len(digests) - len(set(digests)),
        leaks=leaks_of(pool, words, single, groups, digests),
        notes=(
            *source.notes,
            *notes,
            *(() if pool.groups is not None else (NO_GROUP,)),
            *contradictions(pool, digests, source.classes),
        ),
        unreadable=(*broken, *unread),
    )
    record = {**result.to_json(), "data": absolute(data), "seed": seed, **asdict(wanted)}
    record["shares"] = {split: round(share, 9) for split, share in shares.items()}
    places = [f"{word}/{name}" for word, name in zip(words, places_of(pool, source.classes), strict=True)]
    write_folders(target, pool, places, records_of(record, pool, places), progress(1 + int(wanted.validate)))
    return result


def _target(output_dir: str, data: str) -> Path:
    target, raw = Path(output_dir).expanduser().resolve(), Path(data).expanduser()
    if is_path(data) and raw.is_dir() and target.is_relative_to(raw.resolve()):
        raise UserError(
            f"--output-dir {output_dir} lies inside of {data}",
            "a folder elsewhere: the next preparation would take the copies for images of the collection",
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    done = target.is_dir() and (target / PREPARED).is_file()
    raise UserError(
        f"--output-dir {output_dir} {'holds a finished preparation' if done else 'is in use'}",
        "a new or empty folder",
        f"`warmstart finetune --data {output_dir}`, or choose another name"
        if done
        else "choose another name",
    )


def _chosen(source: Source, wanted: Wanted) -> tuple[Source, list[str]]:
    """The source with the wanted classes alone, numbered anew, and a note on the others."""
    names = source.classes
    targets = np.concatenate([part.targets for part in source.splits.values()])
    sizes = np.bincount(targets, minlength=len(names)).tolist()
    by_size = sorted(range(len(names)), key=lambda code: (-sizes[code], names[code]))
    if unknown := [name for name in wanted.classes if name not in names]:
        raise UserError(
            f"--classes: the data have no {listing(unknown)}",
            f"names among {listing(names)}",
            closest(unknown[0], names),
        )
    if wanted.num_classes is not None and (wanted.classes or not 2 <= wanted.num_classes <= len(names)):
        raise UserError(
            f"--num-classes {wanted.num_classes}: the data have {len(names)}: {listing(names)}",
            f"2 to {len(names)}, or --classes to name them",
        )
    chosen = [names.index(name) for name in wanted.classes] or by_size[: wanted.num_classes]
    if len(set(chosen)) < 2:
        raise UserError(f"{len(set(chosen))} class is chosen", "at least two classes")
    codes = sorted(set(chosen))
    number = np.full(len(names), -1, dtype=np.int64)
    number[codes] = np.arange(len(codes))
    taken = kept(source, number[targets] >= 0)
    splits = {split: part.with_targets(number[part.targets]) for split, part in taken.splits.items()}
    notes = []
    if others := [code for code in by_size if code not in codes]:
        how = "named" if wanted.classes else f"the {len(codes)} with the most images"
        told = listing((f"{names[code]} ({sizes[code]})" for code in others), 6)
        notes.append(f"{len(codes)} of {len(names)} classes, {how}; without {told}")
    return replace(taken, classes=tuple(names[code] for code in codes), splits=splits), notes


def _check_names(names: tuple[str, ...]) -> None:
    """UserError for classes that no folder of their own can be called after, on every system."""
    bad = [name for name in names if is_hidden(name) or not name.strip() or set(name) & set("/\\\0")]
    same = [name for name, num in Counter(name.casefold() for name in names).items() if num > 1]
    if bad or same:
        what = listing(map(repr, bad)) if bad else f"several that differ in case only ({listing(same)})"
        raise UserError(
            f"classes that cannot be names of folders: {what}",
            "names without slashes, not hidden, and different without regard to case",
            "rename them in the data",
        )


def _decoded(source: Source, on_progress: Progress | None) -> tuple[Source, tuple[tuple[str, str], ...]]:
    """The source without the images that cannot be decoded, and (id, reason) of those."""
    good: list[np.ndarray] = []
    broken: list[tuple[str, str]] = []
    total, done = sum(map(len, source.splits.values())), 0
    for part in source.splits.values():
        before = done

        def report(num: int, _: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + num, total)

        result = scan(part, scan_workers("auto"), report)
        good.append(result.heights > 0)
        broken += result.corrupt
        done += len(part)
    return _readable(source, np.concatenate(good)), tuple(broken)


def _readable(source: Source, is_good: np.ndarray) -> Source:
    if not is_good.any():
        raise UserError(f"none of the {len(is_good)} images can be read", "images that are there and whole")
    return kept(source, is_good)


def _divided(
    pool: Pool, digests: list[bytes], shares: dict[str, float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The split of each image and its group, both (N,): by whole groups, else by class, with copies as one image."""
    groups = joined(pool.groups, digests)
    if pool.groups is not None:
        return words_of(group_split(pool.targets, groups, shares, seed), len(groups)), groups
    _, first = np.unique(groups, return_index=True)
    return words_of(stratified_split(pool.targets[first], shares, seed), len(first))[groups], groups


def _check_counts(
    counts: dict[str, dict[str, int]], pool: Pool, digests: list[bytes], names: tuple[str, ...]
) -> None:
    """UserError for a class that a split lacks: no split could be compared with another."""
    lacking = {name: [split for split in counts if not counts[split][name]] for name in names}
    told = [
        f"{name} has {len({d for d, t in zip(digests, pool.targets, strict=True) if t == code})} different images, "
        f"none for {listing(lacking[name])}"
        for code, name in enumerate(names)
        if lacking[name]
    ]
    if told:
        raise UserError(
            f"too few images, or groups, for {listing(counts)}: {'; '.join(told[:6])}",
            "every class in every split",
            "add images, leave these classes out (--classes, --num-classes), or other ratios",
        )
