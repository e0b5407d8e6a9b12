"""Delivery: the pixels of samples as batches, in the order that `order.py` gives.

Everything here is a function of (seed, epoch, sample); threads only change when it is computed.
Shapes: N samples of a batch, h x w x C what the model takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np

from warmstart.data.augment import Augment
from warmstart.data.decode import CorruptImage, scale_to_cover, stretch_to, to_channels
from warmstart.data.fetch import Fetch, Piece
from warmstart.data.geometry import MaskRules, evaluation_crop
from warmstart.data.masks import as_ids, is_wide
from warmstart.data.mixing import Mixing
from warmstart.data.samples import Samples
from warmstart.data.unreadable import Unreadable, read_twice
from warmstart.data.workers import DecodePool, calm_opencv
from warmstart.errors import UserError
from warmstart.records import Preprocessing

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd: no two repeats of an image share a key
_TASKS_PER_WORKER = 4  # small enough that no thread waits long for another at the end of a batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as the model's input, not yet normalised."""

    images: np.ndarray  # uint8 (N, h, w, C), contiguous
    targets: np.ndarray  # int64 (N,), uint8 (N, K) of several labels, float32 (N, K) where pairs are mixed;
    # of images with masks the masks, uint8 (N, h, w), int32 where ids go beyond 255
    keys: np.ndarray  # uint64 (N,)
    indices: np.ndarray  # int64 (N,), places in the Samples
    answers: np.ndarray | None = None  # float32 (N, ...) of a teacher, where they are kept
    task: int = 0  # its number, where several tasks are trained

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray | slice) -> Batch:
        """Some of its samples."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        taken: dict[str, Any] = {name: a[rows] for name, a in columns.items() if isinstance(a, np.ndarray)}
        return replace(self, **taken)


@dataclass(frozen=True)
class View:
    """How a decoded image becomes what the model takes; without `augment` it is the view of evaluation."""

    preprocessing: Preprocessing
    native: bool = False  # all images of the data set have one size
    augment: Augment | None = None
    mixing: Mixing | None = None  # of pairs of training images, after everything else
    masks: MaskRules | None = None  # of samples with masks that are augmented
    # Where images may be left out.
    unreadable: Unreadable | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, C) of a finished image."""
        return (*self.preprocessing.image_size, self.preprocessing.num_channels)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image -> covering `resize_size`, or untouched where native and of the model's size.

        Where the preprocessing stretches, it has `resize_size`.
        """
        pixels = to_channels(image, self.preprocessing.num_channels)
        if self.native and image.shape[:2] == self.preprocessing.image_size:
            return pixels
        resize = stretch_to if self.preprocessing.stretch else scale_to_cover
        return resize(pixels, self.preprocessing.resize_size)

    def finish(self, images: Sequence[np.ndarray], keys: np.ndarray, epoch: int) -> np.ndarray:
        """Resized images (N >= 1 of H_i, W_i, C) -> uint8 (N, h, w, C): augmented, or cropped to the centre."""
        size, resize_size = self.preprocessing.image_size, self.preprocessing.resize_size
        if self.augment is None:
            return np.stack([evaluation_crop(image, resize_size, size) for image in images])
        return self.augment(images, keys, epoch, size, resize_size)

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """The pixels of a mask, uint8 (H, W, 1 or 2), -> ids (H', W') of the size of its image after `resize`."""
        if not (self.native and mask.shape[:2] == self.preprocessing.image_size):
            mask = scale_to_cover(mask, self.preprocessing.resize_size, nearest=True)
        return as_ids(mask)

    def finish_with_masks(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], keys: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `finish`, and the images' masks: ids (N, h, w) of the same places."""
        size, resize_size = self.preprocessing.image_size, self.preprocessing.resize_size
        if self.augment is None:
            crops = [evaluation_crop(mask, resize_size, size) for mask in masks]
            return self.finish(images, keys, epoch), np.stack(crops)
        assert self.masks is not None, "masks are moved by rules"
        return self.augment.with_masks(images, masks, keys, epoch, size, resize_size, self.masks)


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
    pairs, view = view.mixing.pairs(epoch), replace(view, unreadable=None)  # partners cannot be missed
    with closing(deliver(samples, map(pairs.complete, wanted), view, workers, epoch)) as batches:
        for places, batch in zip(wanted, batches, strict=True):
            images, targets = pairs.mix(places, batch.images, batch.targets)
            num = len(places)
            yield Batch(images, targets, batch.keys[:num], batch.indices[:num])


def evaluation_batches(
    samples: Samples, preprocessing: Preprocessing, native: bool, batch_size: int, workers: int
) -> Generator[Batch, None, None]:
    """All samples in their own order, centre crop, of masks too; the last batch is smaller."""
    starts = range(0, len(samples), batch_size)
    arrays = (np.arange(start, min(start + batch_size, len(samples))) for start in starts)
    return deliver(samples, arrays, View(preprocessing, native), workers)


def deliver(
    samples: Samples, index_arrays: Iterable[np.ndarray], view: View, workers: int = 0, epoch: int = 0
) -> Generator[Batch, None, None]:
    """One batch per array of indices; bit for bit the same for any number of workers.

    With workers, one batch is prepared while the caller uses another; closing the iterator ends the
    threads. A file that can no longer be read, or whose reading hangs, is tried twice. Then `view.unreadable` counts it
    and its row is left out; without that it is a UserError that names the file. Without workers nobody sees a hang.
    """
    calm_opencv()
    if workers == 0:
        for indices in index_arrays:
            batch = _empty(samples, indices, view)
            yield _without(batch, _fill(batch, Piece(range(len(batch))), samples, view, epoch))
        return
    pool = DecodePool(workers)
    ahead: deque[tuple[Batch, Fetch]] = deque()
    try:
        for indices in index_arrays:
            batch = _empty(samples, indices, view)
            ahead.append((batch, _fetch(pool, workers * _TASKS_PER_WORKER, batch, samples, view, epoch)))
            if len(ahead) > 1:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _empty(samples: Samples, places: np.ndarray, view: View) -> Batch:
    repeats, indices = np.divmod(places, max(1, len(samples)))
    images = np.empty((len(indices), *view.shape), dtype=np.uint8)
    # Wraps around; unchanged without repeats.
    keys = samples.keys[indices] + repeats.astype(np.uint64) * _GOLDEN
    return Batch(images, _empty_targets(samples, indices, view), keys, indices)


def _empty_targets(samples: Samples, indices: np.ndarray, view: View) -> np.ndarray:
    """The targets, or room for masks."""
    if samples.masks is None:
        return samples.targets[indices]
    kind = np.int32 if is_wide(samples.masks) else np.uint8
    return np.empty((len(indices), *view.shape[:2]), dtype=kind)


def _gone(samples: Samples, index: int, error: CorruptImage) -> UserError:
    return UserError(
        f"{samples.ids[index]} can no longer be read: {error.reason}",
        "the file as it was when the data set was opened",
        "restore the file, then resume the run",
    )


def _fill(batch: Batch, piece: Piece, samples: Samples, view: View, epoch: int) -> list[int]:
    """Write the pixels of some rows of a batch that nobody has seen yet; the rows that are left out."""
    images, masks, read, left_out = [], [], [], []
    for row in piece.rows:
        index = int(batch.indices[row])
        piece.begin(row)
        try:
            image, mask = read_twice(samples.ids[index], partial(_read, samples, view, index))
        except CorruptImage as error:
            if piece.is_given_up:
                return []
            if view.unreadable is None:
                raise _gone(samples, index, error) from error
            view.unreadable.add(samples.ids[index], error.reason)
            left_out.append(row)
            continue
        if piece.is_given_up:
            return []
        images.append(image)
        masks += [] if mask is None else [mask]
        read.append(row)
    piece.end()
    if masks:
        finished = view.finish_with_masks(images, masks, batch.keys[read], epoch)
        batch.images[read], batch.targets[read] = finished
    elif images:
        batch.images[read] = view.finish(images, batch.keys[read], epoch)
    return left_out


def _read(samples: Samples, view: View, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """An image, resized, and its mask, if it has one."""
    image = view.resize(samples.pixels.read(index))
    return image, None if samples.masks is None else view.resize_mask(samples.masks.read(index))


def _without(batch: Batch, left_out: list[int]) -> Batch:
    if not left_out:
        return batch
    return batch.take(np.delete(np.arange(len(batch)), left_out))


def _fetch(pool: DecodePool, num_tasks: int, batch: Batch, samples: Samples, view: View, epoch: int) -> Fetch:
    def fill(piece: Piece) -> list[int]:
        return _fill(batch, piece, samples, view, epoch)

    def name(row: int) -> str:
        return samples.ids[batch.indices[row]]

    return Fetch(pool, fill, _parts(len(batch), min(num_tasks, len(batch))), name, view.unreadable)


def _parts(num: int, number: int) -> list[range]:
    bounds = np.linspace(0, num, number + 1).astype(int).tolist()
    return [range(start, end) for start, end in pairwise(bounds)]


def _finished(batch: Batch, fetch: Fetch) -> Batch:
    return _without(batch, fetch.left_out())
