"""Which images of a data set lie in which file of a cache, and what the file is called."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from warmstart.data.decode import CorruptImage
from warmstart.data.samples import Pixels, Samples

_IMAGES_PER_SHARD = 256
_MAX_SHARDS = 256  # each mapped file costs a descriptor
_NUM_PROBED = 64


@dataclass(frozen=True, eq=False)
class Everything:
    """The samples of all splits in a row."""

    splits: tuple[Samples, ...]
    ends: np.ndarray  # of each split in the row
    keys: np.ndarray  # uint64 (N,)

    @classmethod
    def of(cls, splits: dict[str, Samples]) -> Everything:
        parts = tuple(splits.values())
        return cls(parts, np.cumsum([len(part) for part in parts]), np.concatenate([p.keys for p in parts]))

    def find(self, index: int) -> tuple[Pixels, int]:
        split = int(np.searchsorted(self.ends, index, side="right"))
        return self.splits[split].pixels, index - (int(self.ends[split - 1]) if split else 0)

    def mean_size(self, size: tuple[int, int]) -> float:
        """Pixels of an image that was shrunk to cover `size`, from the headers of a few."""
        sizes = []
        for index in np.linspace(0, len(self.keys) - 1, min(_NUM_PROBED, len(self.keys))).astype(int):
            pixels, place = self.find(int(index))
            try:
                height, width, _ = pixels.shape(place)
            except CorruptImage:  # it is counted and named when it is decoded
                continue
            scale = min(1.0, max(size[0] / height, size[1] / width))
            sizes.append(height * width * scale**2)
        return float(np.mean(sizes)) if sizes else 0.0


def divide(keys: np.ndarray) -> list[np.ndarray]:
    """Indices by shard, each in the order of keys; a new image changes one shard only."""
    num = 1
    while num * _IMAGES_PER_SHARD < len(keys) and num < _MAX_SHARDS:
        num *= 2
    order = np.argsort(keys, kind="stable")
    numbers = keys[order] % np.uint64(num)
    return [order[numbers == number] for number in range(num)]


def shard_name(parameters: object, everything: Everything, rows: np.ndarray, suffix: str) -> str:
    """The file of a shard: all that its content depends on is in the name, so nothing stale is ever found."""
    digest = blake2b(digest_size=16)
    digest.update(repr(parameters).encode())
    digest.update(everything.keys[rows].tobytes())
    for index in rows.tolist():
        pixels, place = everything.find(index)
        digest.update(pixels.stamp(place) + b"\0")
    return digest.hexdigest() + suffix
