"""The store of decoded pixels: every image is decoded once, for all epochs, runs and processes.

An image is kept as it is after resizing (it covers the store size, nothing is cropped), or as it was decoded where
resizing would only enlarge it. Which file it lies in follows from its id; that file's name from the ids, the state
of the source files and the parameters. So what has changed on disk is not found, and decoded again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import PIL

from warmstart.console import log
from warmstart.data.cache_folder import PIXELS, make_room, mark_used, memory_room, room
from warmstart.data.decode import CorruptImage
from warmstart.data.listing import Everything, divide, shard_name
from warmstart.data.samples import Pixels, Samples
from warmstart.data.scan import Progress, ScanResult
from warmstart.data.shards import SUFFIX, DamagedShard, Shard, make_shard, open_shard, write_shard
from warmstart.data.store_plan import StorePlan, shrink
from warmstart.data.workers import DecodePool
from warmstart.errors import UserError

_FORMAT = 1  # to be raised when decoding or resizing changes, so that older files are not found

Kept = dict[str, tuple[Samples, ScanResult]]


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Images out of a store; `source` serves those whose bytes are damaged."""

    decoded: ClassVar[bool] = True
    shards: tuple[Shard, ...]
    places: np.ndarray  # int64 (N, 2): shard and row
    source: Pixels
    where: str  # a folder, or `memory`

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> np.ndarray:
        number, row = self.places[index].tolist()
        shard = self.shards[number]
        if row in shard.reasons:
            raise CorruptImage(shard.reasons[row])
        image = shard.image(row)
        if image is None:
            log.warning("the store of decoded images is damaged: an image is decoded again")
            return self.source.read(index)
        return image

    def shape(self, index: int) -> tuple[int, int, int]:
        number, row = self.places[index].tolist()
        height, width, channels = self.shards[number].rows["original"][row].tolist()
        return height, width, channels

    def has_more_frames(self, index: int) -> bool:
        number, row = self.places[index].tolist()
        return bool(self.shards[number].rows["more_frames"][row])

    def stamp(self, index: int) -> bytes:
        return self.source.stamp(index)

    def checksum(self, index: int) -> tuple[int, tuple[int, ...]]:
        """(CRC-32, shape) of the pixels as they are kept."""
        number, row = self.places[index].tolist()
        rows = self.shards[number].rows
        return int(rows["crc"][row]), tuple(rows["size"][row].tolist())

    def subset(self, indices: np.ndarray) -> StoredPixels:
        return StoredPixels(self.shards, self.places[indices], self.source.subset(indices), self.where)


def keep(
    splits: dict[str, Samples], plan: StorePlan, workers: int, on_progress: Progress | None = None
) -> Kept | None:
    """The samples with their pixels in a store, and what was seen while it was built; None: nothing is kept.

    Pixels that are in memory as they are need no store. `on_progress` counts images over all splits.
    Raises UserError where the folder of a store that was asked for by name cannot be written.
    """
    if plan.mode == "off" or any(samples.pixels.decoded for samples in splits.values()):
        return None
    everything = Everything.of(splits)
    if not len(everything.keys):
        return None
    members = divide(everything.keys)
    sampling = ("nearest",) if plan.nearest else ("stretch",) if plan.stretch else ()
    parameters = (_FORMAT, plan.size, plan.num_channels, cv2.__version__, PIL.__version__, *sampling)
    names = [shard_name(parameters, everything, rows, SUFFIX) for rows in members]
    folder = plan.folder / PIXELS
    missing = sum(
        len(rows)
        for rows, name in zip(members, names, strict=True)
        if plan.mode == "ram" or not (folder / name).exists()
    )
    mode = "disk" if plan.mode == "warm" else plan.mode
    if missing and plan.mode == "warm":
        return None
    if missing:
        mode = _choose(
            plan, folder, int(missing * everything.mean_size(plan.size) * plan.num_channels), missing
        )
    elif mode == "auto":
        mode = "disk"
    if mode == "off":
        return None
    shards = []
    done = 0
    with _mapping(workers) as run_all:
        for rows, name in zip(members, names, strict=True):
            shard = None
            if mode == "disk":
                shard = _open(folder / name, everything.keys[rows])
            if shard is None:
                shard = _build(everything, rows, plan, run_all)
                if mode == "disk":
                    if not _save(folder / name, shard, plan.folder, names):
                        return None
                    # The file instead of the copy in memory, which would grow with the data set.
                    shard = _open(folder / name, everything.keys[rows]) or shard
            shards.append(shard)
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(everything.keys))
    return _distribute(splits, tuple(shards), members, str(folder) if mode == "disk" else "memory")


def _choose(plan: StorePlan, folder: Path, needed: int, num: int) -> str:
    """ram, disk or off for `needed` bytes, with the reason in the log."""
    size = f"{num} {plan.what}, about {needed / 1e6:.0f} MB"
    refusal = ""
    if plan.mode in ("auto", "disk"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            limit = room(plan.folder)
            if needed <= limit and os.access(folder, os.W_OK):
                log.info("decoding once: %s, kept in %s (at most %.0f MB in all)", size, folder, limit / 1e6)
                return "disk"
            refusal = (
                f"{folder} has room for {limit / 1e6:.0f} MB" if needed > limit else f"{folder} is read-only"
            )
        except OSError as error:
            refusal = f"{folder} cannot be written: {error.strerror or error}"
        if plan.mode == "disk":
            raise UserError(
                f"--cache disk needs {size}, and {refusal}",
                "a folder with room, of which half may be used",
                "--cache-dir FOLDER, or --cache off to decode in every epoch",
            )
    if plan.mode == "ram" or needed <= memory_room():
        log.info("decoding once: %s, kept in memory%s", size, f" ({refusal})" if refusal else "")
        return "ram"
    log.warning("%s are decoded in every epoch: %s; %s", plan.what, size, refusal)
    return "off"


def _open(path: Path, keys: np.ndarray) -> Shard | None:
    try:
        shard = open_shard(path, keys)
    except FileNotFoundError:
        return None
    except DamagedShard as damage:
        log.warning("%s is damaged (%s): its images are decoded again", path, damage)
        return None
    mark_used(path)
    return shard


def _save(path: Path, shard: Shard, folder: Path, names: Sequence[str]) -> bool:
    """Write a shard, after those that were not used for longest made room for it; whether that went well."""
    try:
        if make_room(folder, shard.pixels.nbytes, frozenset(names)):
            write_shard(path, shard)
            return True
        reason = "other files have filled the disk"
    except OSError as error:
        reason = error.strerror or str(error)
    log.warning(
        "the store of decoded images cannot be finished (%s): images are decoded in every epoch", reason
    )
    return False


RunAll = Callable[[Callable[[int], "_Loaded"], list[int]], Iterator["_Loaded"]]


@dataclass(frozen=True, eq=False)
class _Loaded:
    image: np.ndarray | None
    original: tuple[int, int, int, int]  # shape and more_frames
    reason: str = ""


@contextmanager
def _mapping(workers: int) -> Iterator[RunAll]:
    """`map` in order, in `workers` threads or in this one."""
    if not workers:
        yield map
        return
    pool = DecodePool(workers)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _build(everything: Everything, rows: np.ndarray, plan: StorePlan, run_all: RunAll) -> Shard:
    def load(index: int) -> _Loaded:
        pixels, place = everything.find(index)
        try:
            image = pixels.read(place)
            original = (*image.shape, int(pixels.has_more_frames(place)))
        except CorruptImage as error:
            return _Loaded(None, (0, 0, 0, 0), error.reason)
        try:
            return _Loaded(shrink(image, plan), original)
        except UserError:  # other channels than the model's: whoever reads the shapes names all such files
            return _Loaded(None, original)

    loaded = list(run_all(load, rows.tolist()))
    reasons = {row: one.reason for row, one in enumerate(loaded) if one.reason}
    originals = np.array([one.original for one in loaded], dtype=np.int64).reshape(-1, 4)
    return make_shard(everything.keys[rows], [one.image for one in loaded], originals, reasons)


def _distribute(
    splits: dict[str, Samples], shards: tuple[Shard, ...], members: list[np.ndarray], where: str
) -> Kept:
    """The store's images back to their splits."""
    total = sum(map(len, splits.values()))
    places = np.empty((total, 2), dtype=np.int64)
    originals = np.empty((total, 4), dtype=np.int64)
    reasons: dict[int, str] = {}
    for number, (shard, rows) in enumerate(zip(shards, members, strict=True)):
        places[rows] = np.column_stack((np.full(len(rows), number), np.arange(len(rows))))
        originals[rows] = np.column_stack((shard.rows["original"], shard.rows["more_frames"]))
        reasons |= {int(rows[row]): reason for row, reason in shard.reasons.items()}
    kept: Kept = {}
    start = 0
    for split, samples in splits.items():
        own = slice(start, start + len(samples))
        pixels = StoredPixels(shards, places[own], samples.pixels, where)
        corrupt = tuple(
            (samples.ids[index - start], reason)
            for index, reason in sorted(reasons.items())
            if own.start <= index < own.stop
        )
        kept[split] = (replace(samples, pixels=pixels), ScanResult(corrupt, *originals[own].T))
        start = own.stop
    return kept
