"""Annotations -> one parquet file whose splits no group and no picture crosses, and the count of what would have.

What a split by single images would have leaked, and what the given splits did, is counted (leakage.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.arrow_files import write_pieces
from warmstart.data.leakage import joined
from warmstart.data.pool import (
    NO_GROUP,
    Pool,
    contradictions,
    count_words,
    digests_of,
    open_pictures,
    split_shares,
    words_of,
)
from warmstart.data.preparation import Preparation, leaks_of
from warmstart.data.samples import Source
from warmstart.data.scan import Progress
from warmstart.data.splits import group_split, stratified_split
from warmstart.errors import UserError, listing

_PER_PIECE = 1000  # images held at once


def prepare_parquet(
    data: str,
    output: str,
    settings: DataConfig,
    seed: int = 0,
    classes: Sequence[str] = (),
    embed: bool = False,
    on_progress: Progress | None = None,
) -> Preparation:
    """Read `data`, divide it by whole groups, and write `output`: split, label, class_id, image_path and source, and
    image_bytes where they are to be embedded.

    Of `settings`, group, train_ratio and val_ratio count. `classes` are names for the labels, in the order of these.
    Splits that the data have are counted and given up.

    Raises UserError for data without one class per image, unreadable images, too few groups, and a file that is there.
    """
    target = _target(output)
    source = open_pictures(data, settings.group)
    names = _names(source, classes)
    pool = Pool.of(source)
    digests = _digests(pool, data, on_progress)
    groups = joined(pool.groups, digests)
    shares = split_shares(settings.train_ratio, settings.val_ratio)
    words = words_of(group_split(pool.targets, groups, shares, seed), len(pool.ids))
    single = words_of(stratified_split(pool.targets, shares, seed), len(pool.ids))
    leaks = leaks_of(pool, words, single, groups, digests)
    write_pieces(target, _pieces(pool, words, names, _sources(pool), None if embed else target.parent))
    counts = count_words(words, pool.targets, names, list(shares))
    notes = list(source.notes)
    if settings.group is None and pool.groups is None:
        notes.append(NO_GROUP)
    notes += [*_renumbered(source.classes), *contradictions(pool, digests, names)]
    num_copies = len(digests) - len(set(digests))
    return Preparation(str(target), counts, int(groups.max()) + 1, num_copies, leaks, tuple(notes))


def _renumbered(labels: tuple[str, ...]) -> Iterator[str]:
    """A note where labels that are numbers get other ones as class_id."""
    pairs = [f"{label} is {code}" for code, label in enumerate(labels)]
    if all(label.isdecimal() for label in labels) and labels != tuple(map(str, range(len(labels)))):
        yield f"class_id counts the classes from 0, so the labels have other numbers there: {listing(pairs)}"


def _target(output: str) -> Path:
    target = Path(output).expanduser()
    if target.suffix != ".parquet":
        raise UserError(f"--output {output} has the suffix {target.suffix!r}", "NAME.parquet")
    if target.exists():
        raise UserError(
            f"--output {output} exists already", "a new file", "choose another name, or remove it first"
        )
    if not target.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {target.parent}", "an existing folder")
    return target


def _names(source: Source, classes: Sequence[str]) -> tuple[str, ...]:
    if classes and (len(classes) != len(source.classes) or len(set(classes)) != len(classes)):
        raise UserError(
            f"--classes {','.join(classes)}: the data have {len(source.classes)} labels, {listing(source.classes)}",
            "a name of its own for each of them, in this order",
        )
    return tuple(classes) or source.classes


def _digests(pool: Pool, data: str, on_progress: Progress | None) -> list[bytes]:
    """Of the bytes of each image. UserError for images that cannot be read."""
    found, broken = digests_of(pool, on_progress)
    if broken:
        told = listing((f"{name} ({reason})" for name, reason in broken), 4)
        raise UserError(
            f"{data}: {len(broken)} of {len(pool.ids)} images cannot be read: {told}",
            "images that are there and whole; paths start at the folder of the annotations",
            "mend the paths, or remove these rows",
        )
    return [digest for digest in found if digest is not None]


def _sources(pool: Pool) -> list[str]:
    """The first image of each one's group; without groups, its folder."""
    if pool.groups is None:
        folders = [PurePosixPath(name).parent.as_posix() for name in pool.ids]
        return ["unknown" if folder == "." else folder for folder in folders]
    first: dict[int, str] = {}
    return [first.setdefault(code, name) for code, name in zip(pool.groups.tolist(), pool.ids, strict=True)]


def _pieces(
    pool: Pool, words: np.ndarray, names: tuple[str, ...], sources: list[str], root: Path | None
) -> Iterator[dict[str, list[Any]]]:
    """The columns of some rows after the others, by split and class; without `root` the images go along, else paths
    start there."""
    rank = {word: number for number, word in enumerate(("train", "val", "test"))}
    order = sorted(range(len(pool.ids)), key=lambda i: (rank[str(words[i])], pool.targets[i], pool.ids[i]))
    for start in range(0, len(order), _PER_PIECE):
        rows = order[start : start + _PER_PIECE]
        piece: dict[str, list[Any]] = {
            "split": [str(words[row]) for row in rows],
            "label": [names[pool.targets[row]] for row in rows],
            "class_id": [int(pool.targets[row]) for row in rows],
            "image_path": [_path(pool, row, root) for row in rows],
            "source": [sources[row] for row in rows],
        }
        yield piece if root is not None else piece | {"image_bytes": [pool.encoded(row) for row in rows]}


def _path(pool: Pool, row: int, root: Path | None) -> str:
    if root is None:
        return pool.ids[row]
    file = pool.file(row)
    if file is None:
        raise UserError(
            f"{pool.ids[row]} is no file of its own",
            "images in files",
            "--embed puts the images into the table",
        )
    return Path(os.path.relpath(file, root)).as_posix()
