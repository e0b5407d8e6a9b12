"""Samples: ids, targets and a way to their pixels, the same record before and after splitting; and a Source of them.

N is the number of samples; an id is stable across machines (POSIX, relative to the data's root).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from warmstart.data.decode import decode, has_more_frames, read_bytes, read_shape


class Pixels(Protocol):
    """Where the images of some samples come from."""

    @property
    def decoded(self) -> bool:
        """Whether `read` only looks something up."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, C). Raises CorruptImage."""

    def shape(self, index: int) -> tuple[int, int, int]:
        """(H, W, C) without decoding. Raises CorruptImage."""

    def has_more_frames(self, index: int) -> bool:
        """Whether `read` takes the first of several frames or pages of a readable image."""

    def stamp(self, index: int) -> bytes:
        """What tells this state of the image from any other, without decoding: for the names of caches."""

    def subset(self, indices: np.ndarray) -> Pixels: ...


@dataclass(frozen=True)
class FilePixels:
    """Images in files of any format and size."""

    decoded: ClassVar[bool] = False
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        return decode(self.paths[index])

    def shape(self, index: int) -> tuple[int, int, int]:
        return read_shape(self.paths[index])

    def has_more_frames(self, index: int) -> bool:
        return has_more_frames(self.paths[index])

    def encoded(self, index: int) -> bytes:
        """The content of the file. Raises CorruptImage."""
        return read_bytes(self.paths[index])

    def stamp(self, index: int) -> bytes:
        path = self.paths[index]
        try:
            state = path.stat()
        except (OSError, ValueError):  # it is counted as missing when it is read
            return b"missing"
        return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}".encode("utf-8", "surrogateescape")

    def subset(self, indices: np.ndarray) -> FilePixels:
        return FilePixels(tuple(self.paths[index] for index in indices))


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images of one size in memory (or a memory map): uint8 (M, H, W) or (M, H, W, C).

    `rows` picks some of them without copying.
    """

    decoded: ClassVar[bool] = True
    array: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def read(self, index: int) -> np.ndarray:
        image = self.array[index if self.rows is None else self.rows[index]]
        return image if image.ndim == 3 else image[..., None]

    def shape(self, index: int) -> tuple[int, int, int]:
        height, width, *channels = self.array.shape[1:]
        return height, width, channels[0] if channels else 1

    def has_more_frames(self, index: int) -> bool:
        return False

    def stamp(self, index: int) -> bytes:
        return blake2b(np.ascontiguousarray(self.read(index)).data, digest_size=16).digest()

    def subset(self, indices: np.ndarray) -> ArrayPixels:
        return ArrayPixels(self.array, np.asarray(indices) if self.rows is None else self.rows[indices])


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images; a class of -1 means that there is no label.

    Targets of K labels, of which an image has any number, are multi-hot: 1 where it has the label.
    """

    ids: tuple[str, ...]
    targets: np.ndarray  # int64 (N,), or uint8 (N, K) multi-hot
    pixels: Pixels
    groups: np.ndarray | None = None  # int64 (N,): images of one group never cross a split
    masks: Pixels | None = None  # index masks of the images (masks.py); targets then say which classes occur

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.targets) == len(self.pixels), (
            "ids, targets and pixels differ in number"
        )
        kind = self.targets.ndim, self.targets.dtype
        assert kind in ((1, np.int64), (2, np.uint8)), kind
        assert self.groups is None or (self.groups.shape, self.groups.dtype) == ((len(self),), np.int64)
        assert self.masks is None or (len(self.masks) == len(self) and self.targets.ndim == 2)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 (N,): the number of each id in counter-based random draws."""
        digests = b"".join(blake2b(_bytes(name), digest_size=8).digest() for name in self.ids)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

    def subset(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`, in that order."""
        indices = np.asarray(indices)
        return Samples(
            tuple(self.ids[index] for index in indices),
            self.targets[indices],
            self.pixels.subset(indices),
            None if self.groups is None else self.groups[indices],
            None if self.masks is None else self.masks.subset(indices),
        )

    def without(self, names: Collection[str]) -> Samples:
        """The samples that are not among these ids."""
        if not names:
            return self
        return self.subset(
            np.array([i for i, name in enumerate(self.ids) if name not in names], dtype=np.int64)
        )

    def with_targets(self, targets: np.ndarray) -> Samples:
        return replace(self, targets=targets)


def printable(name: str) -> str:
    """A file name that every file can hold: bytes of it that are not UTF-8 become `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # file names that are not UTF-8 exist


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as found, before anything is split, dropped or limited."""

    classes: tuple[str, ...]  # of masks without names of their classes: empty, until their ids were counted
    splits: dict[str, Samples]  # train, val, test; or only `all`
    fingerprint: str  # changes when a file comes, goes, or changes its size (idx: its content)
    notes: tuple[str, ...] = ()
    ignore: int | None = None  # the id of masks that belongs to no class; None: no masks
    captions: Mapping[str, object] | None = None  # id -> text, where a column of them is asked for
