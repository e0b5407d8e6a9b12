"""Files of decoded pixels: a table of rows, then the pixels. Written whole, mapped when read, checked row by row.

A row is an image as the store keeps it: uint8 (height, width, channels); height 0 means that it cannot be read.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC = b"warmstart pixels 1\n"
SUFFIX = ".pixels"

ROW = np.dtype(
    [
        ("key", "<u8"),
        ("start", "<i8"),
        ("size", "<i4", 3),  # as kept
        ("original", "<i4", 3),  # as decoded: height, width, channels
        ("more_frames", "<i4"),
        ("crc", "<u4"),
    ]
)


class DamagedShard(Exception):
    """A file that is not what was written; `str()` is the reason."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Some images of a store. `checked` remembers which rows were compared with their checksum."""

    rows: np.ndarray  # of ROW, in the order of keys
    pixels: np.ndarray  # uint8 (bytes,), in memory or mapped
    reasons: dict[int, str]  # row -> why it cannot be read
    checked: np.ndarray  # bool (rows,)

    def image(self, row: int) -> np.ndarray | None:
        """uint8 (H, W, C) without a copy; None where the bytes are no longer what was written."""
        height, width, channels = self.rows["size"][row].tolist()
        start = int(self.rows["start"][row])
        flat = self.pixels[start : start + height * width * channels]
        if not self.checked[row]:
            if zlib.crc32(flat.data) != self.rows["crc"][row]:
                return None
            self.checked[row] = True
        return flat.reshape(height, width, channels)


def make_shard(
    keys: np.ndarray, images: list[np.ndarray | None], originals: np.ndarray, reasons: dict[int, str]
) -> Shard:
    """A shard in memory: `images` (None: unreadable) by row, `originals` int (N, 4): shape and more_frames."""
    rows = np.zeros(len(keys), dtype=ROW)
    rows["key"] = keys
    rows["original"], rows["more_frames"] = originals[:, :3], originals[:, 3]
    sizes = [0 if image is None else image.size for image in images]
    rows["start"] = np.cumsum([0, *sizes[:-1]]) if sizes else 0
    pixels = np.empty(sum(sizes), dtype=np.uint8)
    for number, image in enumerate(images):
        if image is not None:
            rows["size"][number] = image.shape
            flat = pixels[rows["start"][number] :][: image.size]
            flat[:] = image.reshape(-1)
            rows["crc"][number] = zlib.crc32(flat.data)
    return Shard(rows, pixels, reasons, np.ones(len(rows), dtype=bool))


def write_shard(path: Path, shard: Shard) -> None:
    """Write a file that appears whole or not at all. Raises OSError where the disk refuses."""
    table = shard.rows.tobytes()
    header = {
        "rows": len(shard.rows),
        "crc": zlib.crc32(table),
        "bytes": shard.pixels.nbytes,
        "reasons": shard.reasons,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same shard
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + json.dumps(header).encode() + b"\n" + table)
            file.write(shard.pixels.data)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):  # it is gone if all went well
            temporary.unlink()


def open_shard(path: Path, keys: np.ndarray) -> Shard:
    """Map a file that holds exactly these keys.

    Raises FileNotFoundError, or DamagedShard for a file that is cut off, changed or of another version.
    """
    with path.open("rb") as file:
        if file.readline(100) != _MAGIC:
            raise DamagedShard("it is of another version, or no file of pixels")
        try:
            header = json.loads(file.readline())
            num_rows, num_bytes = int(header["rows"]), int(header["bytes"])
            crc = int(header["crc"])
            reasons = {int(row): str(reason) for row, reason in header["reasons"].items()}
            table = file.read(num_rows * ROW.itemsize)
            start = file.tell()
        except (ValueError, KeyError, AttributeError, TypeError, MemoryError) as error:
            raise DamagedShard(f"its header is broken: {error}") from error
    if zlib.crc32(table) != crc or path.stat().st_size != start + num_bytes:
        raise DamagedShard("its size or its table is not what was written")
    rows = np.frombuffer(table, dtype=ROW)
    if not np.array_equal(rows["key"], keys):
        raise DamagedShard("it holds other images")
    if num_bytes:
        mapped = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(num_bytes,))
        # A plain view: numpy's own class for maps costs microseconds at every look.
        pixels = np.asarray(mapped)
    else:
        pixels = np.zeros(0, dtype=np.uint8)
    return Shard(rows, pixels, reasons, np.zeros(num_rows, dtype=bool))
