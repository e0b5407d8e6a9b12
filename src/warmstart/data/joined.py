"""The samples of several data sets in a row, and which images two data sets share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warmstart.data.decode import CorruptImage
from warmstart.data.samples import ArrayPixels, Pixels, Samples
from warmstart.data.store import StoredPixels
from warmstart.errors import UserError


@dataclass(frozen=True, eq=False)
class JoinedPixels:
    """Images of several data sets: `places` (N, 2) says in which part and where there each lies."""

    parts: tuple[Pixels, ...]
    places: np.ndarray

    @property
    def decoded(self) -> bool:
        return all(part.decoded for part in self.parts)

    def __len__(self) -> int:
        return len(self.places)

    def _find(self, index: int) -> tuple[Pixels, int]:
        part, place = self.places[index].tolist()
        return self.parts[part], place

    def read(self, index: int) -> np.ndarray:
        pixels, place = self._find(index)
        return pixels.read(place)

    def shape(self, index: int) -> tuple[int, int, int]:
        pixels, place = self._find(index)
        return pixels.shape(place)

    def has_more_frames(self, index: int) -> bool:
        pixels, place = self._find(index)
        return pixels.has_more_frames(place)

    def stamp(self, index: int) -> bytes:
        pixels, place = self._find(index)
        return pixels.stamp(place)

    def subset(self, indices: np.ndarray) -> JoinedPixels:
        return JoinedPixels(self.parts, self.places[indices])


def joined(rows: Sequence[Samples], ids: tuple[str, ...]) -> Samples:
    """All samples in a row, with these ids; groups play no part once data are divided.

    Raises:
        UserError: some have one class each and others sets, or only some have masks.
    """
    if len({(row.targets.ndim, row.masks is None) for row in rows}) > 1:
        raise UserError(
            "the data sets have different kinds of targets",
            "one class per image, sets of labels, or masks, in all of them",
        )
    masks = [row.masks for row in rows if row.masks is not None]
    return Samples(
        ids,
        np.concatenate([row.targets for row in rows]),
        _in_a_row([row.pixels for row in rows]),
        None,
        _in_a_row(masks) if masks else None,
    )


def _in_a_row(parts: Sequence[Pixels]) -> JoinedPixels:
    places = [
        np.column_stack((np.full(len(part), number), np.arange(len(part))))
        for number, part in enumerate(parts)
    ]
    return JoinedPixels(tuple(parts), np.concatenate(places).astype(np.int64))


def same_images(samples: Samples, others: Samples) -> np.ndarray:
    """Sorted indices of `samples` whose image is among the `others`: the same file, or the same pixels.

    Pixels are compared where they are decoded already (a store, arrays); elsewhere the same file is what counts.
    """
    theirs: dict[bytes, list[int]] = {}
    for index in range(len(others)):
        theirs.setdefault(_mark(others.pixels, index), []).append(index)
    found = [
        index
        for index in range(len(samples))
        if any(
            _is_same(samples.pixels, index, others.pixels, other)
            for other in theirs.get(_mark(samples.pixels, index), ())
        )
    ]
    return np.array(found, dtype=np.int64)


def _mark(pixels: Pixels, index: int) -> bytes:
    """Equal for equal images; a checksum is compared again, pixel by pixel."""
    if isinstance(pixels, JoinedPixels):
        return _mark(*pixels._find(index))
    try:
        if isinstance(pixels, StoredPixels):
            checksum, shape = pixels.checksum(index)
            return f"{checksum}|{shape}".encode()
        if isinstance(pixels, ArrayPixels):
            image = np.ascontiguousarray(pixels.read(index))
            return f"{zlib.crc32(image.data)}|{image.shape}".encode()
        return pixels.stamp(index)
    except CorruptImage:
        return b"unreadable"


def _is_same(pixels: Pixels, index: int, others: Pixels, other: int) -> bool:
    if isinstance(others, JoinedPixels):
        return _is_same(pixels, index, *others._find(other))
    if isinstance(pixels, JoinedPixels):
        return _is_same(*pixels._find(index), others, other)
    if not (pixels.decoded and others.decoded):
        return True
    try:
        return np.array_equal(pixels.read(index), others.read(other))
    except CorruptImage:
        return False
