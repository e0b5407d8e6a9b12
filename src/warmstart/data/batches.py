"""Order and delivery: which samples an epoch shows when, and their pixels as batches.

Everything here is a function of (seed, epoch, sample); threads only change when it is computed.
Shapes: N samples of a batch, h x w x C what the model takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from warmstart.data import counters
from warmstart.data.augment import Augment
from warmstart.data.decode import CorruptImage, centre_crop, fit, to_channels
from warmstart.data.samples import Samples
from warmstart.data.workers import decode_pool
from warmstart.errors import UserError
from warmstart.records import Preprocessing

_TASKS_PER_WORKER = 4  # small enough that no thread waits long for another at the end of a batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as the model's input, not yet normalised."""

    images: np.ndarray  # uint8 (N, h, w, C), contiguous
    targets: np.ndarray  # int64 (N,)
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, C) of a finished image."""
        return (*self.preprocessing.image_size, self.preprocessing.num_channels)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image -> `resize_size`, or untouched where native and already of the model's size."""
        if self.native and image.shape[:2] == self.preprocessing.image_size:
            return to_channels(image, self.preprocessing.num_channels)
        return fit(image, self.preprocessing)

    def finish(self, images: Sequence[np.ndarray], keys: np.ndarray, epoch: int) -> np.ndarray:
        """Resized images (N of H, W, C) -> uint8 (N, h, w, C): augmented, or cropped to the centre."""
        size = self.preprocessing.image_size
        if self.augment is None:
            # One by one: where sizes are taken as they are, an image may be larger than its neighbour.
            return np.stack([centre_crop(image, size) for image in images])
        return self.augment(np.stack(images), keys, epoch, size)


def epoch_order(num: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num), int64, that depends on nothing else."""
    return counters.generator(seed, epoch, counters.ORDER).permutation(num)


def epoch_windows(order: np.ndarray, batch_size: int, accumulate: int) -> list[list[np.ndarray]]:
    """Windows of micro-batches of indices; one window is one optimizer step.

    A window has batch_size x accumulate items, the last one what is left. No item is dropped, and none
    is left alone, as a norm layer cannot learn from one item: a last window of one joins the window
    before it, and a window is cut evenly. So a window may be one item larger than asked, and for
    batch_size 2 a micro-batch may hold 3.
    """
    size = batch_size * accumulate
    starts = list(range(0, len(order), size))
    if size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [_cut(order[start:end], batch_size) for start, end in pairwise([*starts, len(order)])]


def _cut(window: np.ndarray, batch_size: int) -> list[np.ndarray]:
    num = -(-len(window) // batch_size)
    if batch_size > 1:
        num = max(1, min(num, len(window) // 2))
    return np.array_split(window, num)


def training_batches(
    samples: Samples, view: View, windows: Iterable[list[np.ndarray]], epoch: int, workers: int
) -> Generator[Batch, None, None]:
    """The micro-batches of all windows in a row; the caller takes len(window) of them per step."""
    return deliver(samples, chain.from_iterable(windows), view, workers, epoch)


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


def _empty(samples: Samples, indices: np.ndarray, view: View) -> Batch:
    images = np.empty((len(indices), *view.shape), dtype=np.uint8)
    return Batch(images, samples.targets[indices], samples.keys[indices], indices)


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
