"""Delivery: the pixels of samples as batches, in the order that `order.py` gives.

Everything here is a function of (seed, epoch, sample); threads only change when it is computed.
Shapes: N samples of a batch, h x w x C what the model takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from warmstart.data.augment import Augment
from warmstart.data.decode import CorruptImage, scale_to_cover, to_channels
from warmstart.data.geometry import evaluation_crop
from warmstart.data.mixing import Mixing
from warmstart.data.samples import Samples
from warmstart.data.workers import calm_opencv, decode_pool
from warmstart.errors import UserError
from warmstart.records import Preprocessing

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd: no two repeats of an image share a key
_TASKS_PER_WORKER = 4  # small enough that no thread waits long for another at the end of a batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as the model's input, not yet normalised."""

    images: np.ndarray  # uint8 (N, h, w, C), contiguous
    targets: np.ndarray  # int64 (N,), uint8 (N, K) of several labels, float32 (N, K) where pairs are mixed
    keys: np.ndarray  # uint64 (N,)
    indices: np.ndarray  # int64 (N,), places in the Samples

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class View:
    """How a decoded image becomes what the model takes; without `augment` it is the view of evaluation."""

    preprocessing: Preprocessing
    native: bool = False  # all images of the data set have one size
    augment: Augment | None = None
    mixing: Mixing | None = None  # of pairs of training images, after everything else

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, C) of a finished image."""
        return (*self.preprocessing.image_size, self.preprocessing.num_channels)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image -> covering `resize_size`, or untouched where native and of the model's size."""
        pixels = to_channels(image, self.preprocessing.num_channels)
        if self.native and image.shape[:2] == self.preprocessing.image_size:
            return pixels
        return scale_to_cover(pixels, self.preprocessing.resize_size)

    def finish(self, images: Sequence[np.ndarray], keys: np.ndarray, epoch: int) -> np.ndarray:
        """Resized images (N >= 1 of H_i, W_i, C) -> uint8 (N, h, w, C): augmented, or cropped to the centre."""
        size, resize_size = self.preprocessing.image_size, self.preprocessing.resize_size
        if self.augment is None:
            return np.stack([evaluation_crop(image, resize_size, size) for image in images])
        return self.augment(images, keys, epoch, size, resize_size)


def training_batches(
    samples: Samples,
    view: View,
    windows: Iterable[list[np.ndarray]],
    epoch: int,
    workers: int,
    part: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Generator[Batch, None, None]:
    """The micro-batches of all windows in a row; the caller takes len(window) of them per step.

    `part` picks what this process takes of a micro-batch: all of it where there is one only.
    """
    wanted = map(part, chain.from_iterable(windows))
    if view.mixing is None:
        return deliver(samples, wanted, view, workers, epoch)
    return _mixed(samples, list(wanted), view, workers, epoch)


def _mixed(
    samples: Samples, wanted: list[np.ndarray], view: View, workers: int, epoch: int
) -> Generator[Batch, None, None]:
    """Batches with every image mixed with its partner, whose pixels are made too where it is in another batch."""
    assert view.mixing is not None
    pairs = view.mixing.pairs(epoch)
    with closing(deliver(samples, map(pairs.complete, wanted), view, workers, epoch)) as batches:
        for places, batch in zip(wanted, batches, strict=True):
            images, targets = pairs.mix(places, batch.images, batch.targets)
            num = len(places)
            yield Batch(images, targets, batch.keys[:num], batch.indices[:num])


def evaluation_batches(
    samples: Samples, preprocessing: Preprocessing, native: bool, batch_size: int, workers: int
) -> Generator[Batch, None, None]:
    """All samples in their own order, centre crop; the last batch is smaller."""
    starts = range(0, len(samples), batch_size)
    arrays = (np.arange(start, min(start + batch_size, len(samples))) for start in starts)
    return deliver(samples, arrays, View(preprocessing, native), workers)


def deliver(
    samples: Samples, index_arrays: Iterable[np.ndarray], view: View, workers: int = 0, epoch: int = 0
) -> Generator[Batch, None, None]:
    """One batch per array of indices; bit for bit the same for any number of workers.

    With workers, one batch is prepared while the caller uses another; closing the iterator ends the
    threads. Raises UserError for a file that can no longer be read.
    """
    calm_opencv()
    if workers == 0:
        for indices in index_arrays:
            batch = _empty(samples, indices, view)
            _fill(batch, slice(None), samples, view, epoch)
            yield batch
        return
    pool = decode_pool(workers)
    ahead: deque[tuple[Batch, list[Future[None]]]] = deque()
    try:
        for indices in index_arrays:
            batch = _empty(samples, indices, view)
            ahead.append((batch, _submit(pool, workers * _TASKS_PER_WORKER, batch, samples, view, epoch)))
            if len(ahead) > 1:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _empty(samples: Samples, places: np.ndarray, view: View) -> Batch:
    repeats, indices = np.divmod(places, max(1, len(samples)))
    images = np.empty((len(indices), *view.shape), dtype=np.uint8)
    keys = (
        samples.keys[indices] + repeats.astype(np.uint64) * _GOLDEN
    )  # wraps around; unchanged without repeats
    return Batch(images, samples.targets[indices], keys, indices)


def _fill(batch: Batch, rows: slice, samples: Samples, view: View, epoch: int) -> None:
    """Write the pixels of some rows of a batch that nobody has seen yet."""
    images = []
    for index in batch.indices[rows].tolist():
        try:
            images.append(view.resize(samples.pixels.read(index)))
        except CorruptImage as error:
            raise UserError(
                f"{samples.ids[index]} can no longer be read: {error.reason}",
                "the file as it was when the data set was opened",
                "restore the file, then resume the run",
            ) from error
    if images:
        batch.images[rows] = view.finish(images, batch.keys[rows], epoch)


def _submit(
    pool: ThreadPoolExecutor, num_tasks: int, batch: Batch, samples: Samples, view: View, epoch: int
) -> list[Future[None]]:
    bounds = np.linspace(0, len(batch), min(num_tasks, len(batch)) + 1).astype(int).tolist()
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    return [pool.submit(_fill, batch, rows, samples, view, epoch) for rows in parts]


def _finished(batch: Batch, tasks: list[Future[None]]) -> Batch:
    for task in tasks:
        task.result()
    return batch
