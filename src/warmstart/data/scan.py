"""Reading every image once before training: which are corrupt, and what sizes they have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from warmstart.data.decode import CorruptImage
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.data.workers import DecodePool
from warmstart.errors import UserError

_CHUNK = 32  # images per task of a thread

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Sizes in pixels and channels of each sample, int64 (N,); zeros where it is corrupt."""

    corrupt: tuple[tuple[str, str], ...]  # (id, reason)
    heights: np.ndarray
    widths: np.ndarray
    channels: np.ndarray
    more_frames: np.ndarray  # 1 where only the first of several frames or pages is used; 0 if not looked at

    @property
    def good(self) -> np.ndarray:
        """Indices of the readable samples."""
        return np.flatnonzero(self.heights > 0)

    def subset(self, rows: np.ndarray, names: Collection[str]) -> ScanResult:
        """Of some rows only, whose ids are `names`."""
        columns = (self.heights, self.widths, self.channels, self.more_frames)
        corrupt = tuple(pair for pair in self.corrupt if pair[0] in names)
        return ScanResult(corrupt, *(column[rows] for column in columns))


def scan(samples: Samples, workers: int, on_progress: Progress | None = None) -> ScanResult:
    """Decode every image fully; pixels in memory are taken as they are."""
    if isinstance(samples.pixels, ArrayPixels):
        return _in_memory(samples, on_progress)
    return _collect(samples, _examine_fully, workers, on_progress)


def read_sizes(samples: Samples, workers: int, on_progress: Progress | None = None) -> ScanResult:
    """The sizes by the headers alone, for data that was scanned before.

    Raises UserError for a file whose header cannot be read: it has changed since.
    """
    if isinstance(samples.pixels, ArrayPixels):
        return _in_memory(samples, on_progress)
    result = _collect(samples, _examine_header, workers, on_progress)
    check_unchanged(result)
    return result


def check_unchanged(result: ScanResult) -> None:
    """Raise UserError where an image of a run that was scanned before is corrupt."""
    if result.corrupt:
        name, reason = result.corrupt[0]
        raise UserError(
            f"{name} was readable when the run started and is not now: {reason}",
            "the data as it was",
            "restore the file, or start a new run",
        )


def _in_memory(samples: Samples, on_progress: Progress | None) -> ScanResult:
    shape = samples.pixels.shape(0) if len(samples) else (0, 0, 0)
    if on_progress is not None:
        on_progress(len(samples), len(samples))
    heights, widths, channels = (np.full(len(samples), extent, dtype=np.int64) for extent in shape)
    return ScanResult((), heights, widths, channels, np.zeros(len(samples), dtype=np.int64))


def _examine_fully(samples: Samples, index: int) -> tuple[int, ...]:
    return *samples.pixels.read(index).shape, samples.pixels.has_more_frames(index)


def _examine_header(samples: Samples, index: int) -> tuple[int, ...]:
    return *samples.pixels.shape(index), 0


def _collect(
    samples: Samples,
    examine: Callable[[Samples, int], tuple[int, ...]],
    workers: int,
    on_progress: Progress | None,
) -> ScanResult:
    found = np.zeros((len(samples), 4), dtype=np.int64)
    corrupt: list[tuple[str, str]] = []

    def examine_chunk(indices: range) -> list[tuple[int, str]]:
        failed = []
        for index in indices:
            try:
                found[index] = examine(samples, index)
            except CorruptImage as error:
                failed.append((index, error.reason))
        return failed

    chunks = [range(at, min(at + _CHUNK, len(samples))) for at in range(0, len(samples), _CHUNK)]
    done = 0
    for chunk, failed in zip(chunks, _map(examine_chunk, chunks, workers), strict=True):
        corrupt += [(samples.ids[index], reason) for index, reason in failed]
        done += len(chunk)
        if on_progress is not None:
            on_progress(done, len(samples))
    return ScanResult(tuple(corrupt), *found.T)


def _map(
    function: Callable[[range], list[tuple[int, str]]], chunks: Iterable[range], workers: int
) -> Iterator[list[tuple[int, str]]]:
    """`map` in order, in `workers` threads or in this one."""
    if workers == 0:
        yield from map(function, chunks)
        return
    pool = DecodePool(workers)
    try:
        yield from pool.map(function, chunks)
    finally:
        pool.shutdown(cancel_futures=True)
