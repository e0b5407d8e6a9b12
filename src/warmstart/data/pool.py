"""All images of a data set in a row, whatever they come from, to be divided anew: their bytes, and which are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from warmstart.config.values import is_pattern
from warmstart.data.csv_table import open_rows, read_csv
from warmstart.data.decode import IMAGE_SUFFIXES, CorruptImage
from warmstart.data.embedded import EmbeddedPixels
from warmstart.data.folders import open_folders
from warmstart.data.groups import group_by_pattern
from warmstart.data.listing import Everything
from warmstart.data.mask_columns import TableColumns
from warmstart.data.mask_settings import NO_MASKS
from warmstart.data.samples import FilePixels, Source
from warmstart.data.scan import Progress
from warmstart.data.sources import check_classes, open_place
from warmstart.errors import UserError, listing

_NUM_UNNAMED = (
    2  # columns of an annotation file without a header, as document 001 has it: image_path, class_id
)
_RGB = 3
NO_GROUP = "no --group: images of one person, video or camera may be in several splits; only copies are not"


@dataclass(frozen=True, eq=False)
class Pool:
    """All images in a row: `words` are the splits that they came with (None: none), `groups` those asked for."""

    ids: tuple[str, ...]
    targets: np.ndarray  # int64 (N,)
    pictures: Everything
    words: np.ndarray | None
    groups: np.ndarray | None

    @classmethod
    def of(cls, source: Source) -> Pool:
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


def open_pictures(data: str, group: str | None, folders: Callable[[Path], Source] = open_folders) -> Source:
    """The data set at `data`, with one class per image; `folders` reads class folders.

    Raises UserError as `open_source`, for masks and sets of labels.
    """
    by_pattern = group is not None and is_pattern(group)
    columns: TableColumns = {"group": None if by_pattern else group, "label_columns": (), "masks": NO_MASKS}
    source = _unnamed(Path(data).expanduser(), columns) or open_place(data, columns, folders=folders)
    if source.ignore is not None or any(part.targets.ndim > 1 for part in source.splits.values()):
        what = "masks" if source.ignore is not None else "several labels per image"
        raise UserError(
            f"{data} has {what}", "one class per image, as the columns label and class_id hold it"
        )
    check_classes(source, data)
    return group_by_pattern(source, group) if by_pattern and group is not None else source


def _unnamed(path: Path, columns: TableColumns) -> Source | None:
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
    return open_rows(path.name, path.parent, ["image_path", "label"], [header, *rows], columns)


def kept(source: Source, keep: np.ndarray) -> Source:
    """The source with those of its images, all splits in a row, where `keep`, bool (N,), is true."""
    splits, start = {}, 0
    for split, samples in source.splits.items():
        rows = np.flatnonzero(keep[start : start + len(samples)])
        start += len(samples)
        if len(rows):
            splits[split] = samples.subset(rows)
    return replace(source, splits=splits)


def digests_of(
    pool: Pool, on_progress: Progress | None
) -> tuple[list[bytes | None], tuple[tuple[str, str], ...]]:
    """Of the bytes of each image, None where its header cannot be read; and (id, reason) of those."""
    found: list[bytes | None] = []
    broken = []
    for index, name in enumerate(pool.ids):
        try:
            pool.check(index)
            found.append(blake2b(pool.encoded(index), digest_size=16).digest())
        except CorruptImage as error:
            found.append(None)
            broken.append((name, error.reason))
        if on_progress is not None:
            on_progress(index + 1, len(pool.ids))
    return found, tuple(broken)


def words_of(parts: dict[str, np.ndarray], num: int) -> np.ndarray:
    """(num,): the name of the part that each index is in."""
    words = np.empty(num, dtype="U5")
    for split, rows in parts.items():
        words[rows] = split
    return words


def contradictions(pool: Pool, digests: list[bytes], names: tuple[str, ...]) -> Iterator[str]:
    """A note about images that are the same, byte for byte, and have different labels."""
    first: dict[bytes, int] = {}
    words = [f"{name} ({names[code]})" for name, code in zip(pool.ids, pool.targets.tolist(), strict=True)]
    pairs = ((row, first.setdefault(digest, row)) for row, digest in enumerate(digests))
    told = [f"{words[a]} is {words[b]}" for a, b in pairs if pool.targets[a] != pool.targets[b]]
    if told:
        yield f"{len(told)} copies have another label than the image that they are a copy of: {listing(told, 3)}"


def count_words(
    words: np.ndarray, targets: np.ndarray, names: tuple[str, ...], splits: Iterator[str] | list[str]
) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    return {
        split: {name: int(((words == split) & (targets == code)).sum()) for code, name in enumerate(names)}
        for split in splits
    }


def split_shares(train_ratio: float, val_ratio: float) -> dict[str, float]:
    """Share by split; what train and val leave is test, and a split without a share is not there."""
    rest = 1 - train_ratio - val_ratio
    shares = {"train": train_ratio, "val": val_ratio, "test": rest if rest > 1e-9 else 0.0}
    return {split: share for split, share in shares.items() if share > 0}
