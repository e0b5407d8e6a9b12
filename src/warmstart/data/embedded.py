"""Encoded images inside a table, decoded one by one as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from warmstart.data.decode import (
    CorruptImage,
    decode,
    decode_bytes,
    has_more_frames,
    read_bytes,
    read_shape,
    read_shape_bytes,
)
from warmstart.data.samples import FilePixels


class Value(Protocol):
    """One value of an Arrow array."""

    def as_py(self) -> bytes | None: ...


class Chunk(Protocol):
    """An Arrow array of binary values."""

    def __getitem__(self, index: int) -> Value: ...


@dataclass(frozen=True, eq=False)
class EmbeddedPixels:
    """Encoded images in chunks of Arrow binary; `rows` picks some, `files` are where a row has no bytes.

    Chunks are read-only, so that threads may share them; a read copies the bytes of one image.
    """

    decoded: ClassVar[bool] = False
    chunks: tuple[Chunk, ...]
    starts: np.ndarray  # int64, the first row of each chunk
    rows: np.ndarray  # int64 (N,)
    files: dict[int, Path]  # row -> file

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> np.ndarray:
        data = self._find(index)
        return decode(data) if isinstance(data, Path) else decode_bytes(data)

    def shape(self, index: int) -> tuple[int, int, int]:
        data = self._find(index)
        return read_shape(data) if isinstance(data, Path) else read_shape_bytes(data)

    def has_more_frames(self, index: int) -> bool:
        return has_more_frames(self._find(index))

    def encoded(self, index: int) -> bytes:
        """The bytes of the image. Raises CorruptImage."""
        data = self._find(index)
        return read_bytes(data) if isinstance(data, Path) else data

    def stamp(self, index: int) -> bytes:
        try:
            data = self._find(index)
        except CorruptImage:
            return b"missing"
        if isinstance(data, Path):
            return FilePixels((data,)).stamp(0)
        return blake2b(data, digest_size=16).digest()

    def subset(self, indices: np.ndarray) -> EmbeddedPixels:
        return EmbeddedPixels(self.chunks, self.starts, self.rows[indices], self.files)

    def _find(self, index: int) -> bytes | Path:
        row = int(self.rows[index])
        if row in self.files:
            return self.files[row]
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        data = self.chunks[chunk][row - int(self.starts[chunk])].as_py()
        if not data:
            raise CorruptImage("no image bytes" if data is None else "empty image (0 bytes)")
        return data
