"""Annotations -> one parquet file whose splits no group and no picture crosses, and the count of what would have.

What a split by single images would have leaked, and what the given splits did, is counted (leakage.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.config.values import is_pattern
from warmstart.data.arrow_files import write_pieces
from warmstart.data.csv_table import open_rows, read_csv
from warmstart.data.decode import IMAGE_SUFFIXES, CorruptImage
from warmstart.data.embedded import EmbeddedPixels
from warmstart.data.groups import group_by_pattern
from warmstart.data.leakage import Leakage, joined, leakage
from warmstart.data.listing import Everything
from warmstart.data.mask_columns import TableColumns
from warmstart.data.mask_settings import NO_MASKS
from warmstart.data.samples import FilePixels, Source
from warmstart.data.scan import Progress
from warmstart.data.sources import open_source
from warmstart.data.splits import group_split, stratified_split
from warmstart.errors import UserError, listing
from warmstart.shown import Shown

_NUM_UNNAMED = (
    2  # columns of an annotation file without a header, as document 001 has it: image_path, class_id
)
_RGB = 3
_PER_PIECE = 1000  # images held at once


@dataclass(frozen=True, eq=False)
class _Pool:
    """All images in a row: `words` are the splits that they came with (None: none), `groups` those asked for."""

    ids: tuple[str, ...]
    targets: np.ndarray  # int64 (N,)
    pictures: Everything
    words: np.ndarray | None
    groups: np.ndarray | None

    @classmethod
    def of(cls, source: Source) -> _Pool:
        parts = list(source.splits.values())
        groups = [part.groups for part in parts if part.groups is not None]
        return cls(
            tuple(name for part in parts for name in part.ids),
            np.concatenate([part.targets for part in parts]),
            Everything.of(source.splits),
            np.repeat(list(source.splits), [len(part) for part in parts]) if len(parts) > 1 else None,
            np.concatenate(groups) if len(groups) == len(parts) else None,
        )

    def encoded(self, index: int) -> bytes:
        """The bytes of an image's file; of one that is an array, as PNG. Raises CorruptImage."""
        pixels, place = self.pictures.find(index)
        if isinstance(pixels, (FilePixels, EmbeddedPixels)):
            return pixels.encoded(place)
        image = pixels.read(place)
        colours = image[..., ::-1] if image.shape[2] == _RGB else image
        return bytes(cv2.imencode(".png", np.ascontiguousarray(colours))[1])

    def check(self, index: int) -> None:
        """Raises CorruptImage for a header that cannot be read."""
        pixels, place = self.pictures.find(index)
        pixels.shape(place)

    def file(self, index: int) -> Path | None:
        """None where the image is not in a file of its own."""
        pixels, place = self.pictures.find(index)
        return pixels.paths[place] if isinstance(pixels, FilePixels) else None


@dataclass(frozen=True)
class Preparation(Shown):
    """What was written: images by split and class, groups, and what other divisions would have leaked."""

    path: str
    counts: dict[str, dict[str, int]]
    num_groups: int  # copies count as one group
    num_copies: int  # images that are, byte for byte, another image of the set
    leaks: tuple[Leakage, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        total = sum(sum(counts.values()) for counts in self.counts.values())
        lines = [
            f"{self.path}: {total} images in {self.num_groups} groups, {self.num_copies} of them copies",
            "",
        ]
        for split, counts in self.counts.items():
            lines.append(
                f"{split}: {sum(counts.values())} ({', '.join(f'{name} {n}' for name, n in counts.items())})"
            )
        lines += ["", "leakage"]
        for leak in self.leaks:
            lines.append(
                f"{leak.how}: {leak.torn} groups torn apart, {leak.images} images of val and test with their group in "
                f"train, {leak.copies} with their very bytes"
            )
        return "\n".join([*lines, "", *self.notes, f"next: warmstart finetune --data {self.path}"])


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
    source = _open(data, settings.group)
    names = _names(source, classes)
    pool = _Pool.of(source)
    digests = _digests(pool, data, on_progress)
    groups = joined(pool.groups, digests)
    rest = 1 - settings.train_ratio - settings.val_ratio
    shares = {"train": settings.train_ratio, "val": settings.val_ratio, "test": rest if rest > 1e-9 else 0.0}
    shares = {split: share for split, share in shares.items() if share > 0}
    words = _words(group_split(pool.targets, groups, shares, seed), len(pool.ids))
    single = _words(stratified_split(pool.targets, shares, seed), len(pool.ids))
    divisions = {} if pool.words is None else {"the splits that the data came with": pool.words}
    divisions |= {"divided by single images": single, "as written": words}
    leaks = tuple(leakage(how, each, groups, digests) for how, each in divisions.items())
    write_pieces(target, _pieces(pool, words, names, _sources(pool), None if embed else target.parent))
    counts = {
        split: {
            name: int(((words == split) & (pool.targets == code)).sum()) for code, name in enumerate(names)
        }
        for split in shares
    }
    notes = list(source.notes)
    if settings.group is None and pool.groups is None:
        notes.append(
            "no --group: images of one person, video or camera may be in several splits; only copies are not"
        )
    notes += [*_renumbered(source.classes), *_contradictions(pool, digests, names)]
    num_copies = len(digests) - len(set(digests))
    return Preparation(str(target), counts, int(groups.max()) + 1, num_copies, leaks, tuple(notes))


def _renumbered(labels: tuple[str, ...]) -> Iterator[str]:
    """A note where labels that are numbers get other ones as class_id."""
    pairs = [f"{label} is {code}" for code, label in enumerate(labels)]
    if all(label.isdecimal() for label in labels) and labels != tuple(map(str, range(len(labels)))):
        yield f"class_id counts the classes from 0, so the labels have other numbers there: {listing(pairs)}"


def _contradictions(pool: _Pool, digests: list[bytes], names: tuple[str, ...]) -> Iterator[str]:
    """A note about images that are the same, byte for byte, and have different labels."""
    first: dict[bytes, int] = {}
    words = [f"{name} ({names[code]})" for name, code in zip(pool.ids, pool.targets.tolist(), strict=True)]
    pairs = ((row, first.setdefault(digest, row)) for row, digest in enumerate(digests))
    told = [f"{words[a]} is {words[b]}" for a, b in pairs if pool.targets[a] != pool.targets[b]]
    if told:
        yield f"{len(told)} copies have another label than the image that they are a copy of: {listing(told, 3)}"


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


def _open(data: str, group: str | None) -> Source:
    source = _unnamed(Path(data).expanduser(), group) or open_source(data, group=group)
    if source.ignore is not None or any(part.targets.ndim > 1 for part in source.splits.values()):
        what = "masks" if source.ignore is not None else "several labels per image"
        raise UserError(
            f"{data} has {what}", "one class per image, as the columns label and class_id hold it"
        )
    return source


def _unnamed(path: Path, group: str | None) -> Source | None:
    """The rows of a CSV file without a header, whose first cell is an image; None for anything else."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return None
    header, rows = read_csv(path)
    if PurePosixPath(header[0]).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if len(header) != _NUM_UNNAMED:
        raise UserError(
            f"{path} has {len(header)} columns and no header: its first cell is {header[0]!r}",
            "image_path,class_id in every row, or a header",
        )
    by_pattern = group is not None and is_pattern(group)
    columns: TableColumns = {"group": None if by_pattern else group, "label_columns": (), "masks": NO_MASKS}
    source = open_rows(path.name, path.parent, ["image_path", "label"], [header, *rows], columns)
    return group_by_pattern(source, group) if by_pattern and group is not None else source


def _names(source: Source, classes: Sequence[str]) -> tuple[str, ...]:
    if classes and (len(classes) != len(source.classes) or len(set(classes)) != len(classes)):
        raise UserError(
            f"--classes {','.join(classes)}: the data have {len(source.classes)} labels, {listing(source.classes)}",
            "a name of its own for each of them, in this order",
        )
    return tuple(classes) or source.classes


def _digests(pool: _Pool, data: str, on_progress: Progress | None) -> list[bytes]:
    """Of the bytes of each image. UserError for images that cannot be read."""
    found, broken = [], []
    for index, name in enumerate(pool.ids):
        try:
            pool.check(index)
            found.append(blake2b(pool.encoded(index), digest_size=16).digest())
        except CorruptImage as error:
            broken.append(f"{name} ({error.reason})")
        if on_progress is not None:
            on_progress(index + 1, len(pool.ids))
    if broken:
        raise UserError(
            f"{data}: {len(broken)} of {len(pool.ids)} images cannot be read: {listing(broken, 4)}",
            "images that are there and whole; paths start at the folder of the annotations",
            "mend the paths, or remove these rows",
        )
    return found


def _words(parts: dict[str, np.ndarray], num: int) -> np.ndarray:
    words = np.empty(num, dtype="U5")
    for split, rows in parts.items():
        words[rows] = split
    return words


def _sources(pool: _Pool) -> list[str]:
    """The first image of each one's group; without groups, its folder."""
    if pool.groups is None:
        folders = [PurePosixPath(name).parent.as_posix() for name in pool.ids]
        return ["unknown" if folder == "." else folder for folder in folders]
    first: dict[int, str] = {}
    return [first.setdefault(code, name) for code, name in zip(pool.groups.tolist(), pool.ids, strict=True)]


def _pieces(
    pool: _Pool, words: np.ndarray, names: tuple[str, ...], sources: list[str], root: Path | None
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


def _path(pool: _Pool, row: int, root: Path | None) -> str:
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
