"""Features of a frozen prefix, computed once per image and view, and kept as files of fixed content.

Where images have masks, those of the same view lie in the same file, in the same row.

The images of a file and their order follow from their ids, so that files built twice are equal to the bit. Its name
says all that it depends on: weights, cut, preprocessing, view, images.
Shapes: N samples, then whatever the cut gives for one image, without a batch axis.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.console import log, progress
from warmstart.data.batches import Batch, View, deliver
from warmstart.data.cache_folder import make_room, mark_used
from warmstart.data.listing import Everything, divide, shard_name
from warmstart.data.samples import Samples
from warmstart.inference.cut import Cut, prefix_features
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.memory import AtOnce, within_memory
from warmstart.records import Preprocessing

SUFFIX = ".npy"
FEATURES, MASKS = "features", "masks"  # the fields of a row
_IMAGES_AT_ONCE = 64  # fixed: another number would round differently


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """The features of some samples in one view: `places` (N, 2) says in which array and row each lies."""

    arrays: tuple[np.ndarray, ...]  # see `_row_type`
    places: np.ndarray

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Features, float32 (len(indices), ...), a copy; channels last where the model computes so."""
        return self._gather(indices, FEATURES)

    def masks(self, indices: np.ndarray) -> np.ndarray | None:
        """The masks of the view (len(indices), h, w), a copy, where there are some."""
        return self._gather(indices, MASKS) if MASKS in (self.arrays[0].dtype.names or ()) else None

    def _gather(self, indices: np.ndarray, name: str) -> np.ndarray:
        arrays = [array[name] for array in self.arrays]
        places = self.places[indices]
        found = np.empty((len(indices), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for number in np.unique(places[:, 0]).tolist():
            rows = np.flatnonzero(places[:, 0] == number)
            found[rows] = arrays[number][places[rows, 1]]
        return found


def _row_type(features: np.ndarray, masks: np.ndarray | None) -> np.dtype:
    """A row of a file: an image's features and, where there are some, its mask, each on a multiple of four bytes."""
    fields = [(FEATURES, features.dtype, features.shape[1:])]
    if masks is not None:
        fields.append((MASKS, masks.dtype, masks.shape[1:]))
    return np.dtype(fields, align=True)


class Computed(ABC):
    """Features that are computed once per image and view. `folder` is None where they stay in memory."""

    device: torch.device
    precision: torch.dtype | None
    channels_last: bool
    workers: int
    folder: Path | None
    at_once: AtOnce
    keeps_masks: bool

    @property
    @abstractmethod
    def made_by(self) -> tuple[Any, ...]:
        """What the features of equal pixels depend on, by values whose `repr` tells them apart."""

    @abstractmethod
    def reader(self, preprocessing: Preprocessing) -> Callable[[np.ndarray], torch.Tensor]:
        """What gives the features of a batch's images, uint8 (N, h, w, C), without a graph."""

    def table(self, samples: Samples, view: View, epoch: int, label: str) -> FeatureTable:
        """Features of all samples in one view; what is not kept yet is computed. Leaves the module in eval mode.

        Where memory does not suffice, everything is computed anew with fewer images at once, which is part of the
        files' names: so the bits never depend on when it was that memory ran out.

        Raises:
            UserError: not even one image fits into memory.
        """
        while (found := self._table(samples, view, epoch, label)) is None:
            pass
        return found

    def _table(self, samples: Samples, view: View, epoch: int, label: str) -> FeatureTable | None:
        """None where memory ran out on the way."""
        limit = self.at_once.limit
        everything = Everything.of({"": samples})
        members = [rows for rows in divide(everything.keys) if len(rows)]
        parameters = (
            *self.made_by,
            self._view_name(view, epoch),
            torch.__version__,
            self.device.type,
            *([] if limit is None else [limit]),
        )
        names = [
            shard_name(
                (*parameters, self.precision, self._mask_stamps(samples, rows)), everything, rows, SUFFIX
            )
            for rows in members
        ]
        arrays: list[np.ndarray] = []
        done = 0
        with progress(label, len(samples)) as bar:
            for rows, name in zip(members, names, strict=True):
                array = self._open(name, len(rows), self.keeps_masks and samples.masks is not None)
                if array is None:
                    array = self._compute(samples, rows, view, epoch)
                    if self.at_once.limit != limit:
                        return None
                    array = self._save(name, array, names)
                arrays.append(array)
                done += len(rows)
                bar.update(done)
        places = np.empty((len(samples), 2), dtype=np.int64)
        for number, rows in enumerate(members):
            places[rows] = np.column_stack((np.full(len(rows), number), np.arange(len(rows))))
        return FeatureTable(tuple(arrays), places)

    def _view_name(self, view: View, epoch: int) -> str:
        """All that the pixels depend on besides the images; without augmentation no epoch."""
        return repr((view, epoch if view.augment is not None and view.augment.active else None))

    def _compute(self, samples: Samples, rows: np.ndarray, view: View, epoch: int) -> np.ndarray:
        features_of = self.reader(view.preprocessing)
        parts = [rows[start : start + _IMAGES_AT_ONCE] for start in range(0, len(rows), _IMAGES_AT_ONCE)]
        result: np.ndarray = np.empty(0)
        done = 0
        is_low = self.precision is not None

        def compute(pieces: Iterable[Batch]) -> list[np.ndarray]:
            with torch.autocast(self.device.type, dtype=self.precision, enabled=is_low):
                outputs = (features_of(piece.images) for piece in pieces)
                return [self._to_array(features.to("cpu", torch.float32)) for features in outputs]

        with closing(deliver(samples, parts, view, self.workers, epoch)) as batches:
            for batch in batches:
                array = np.concatenate(within_memory(compute, [batch], self.at_once))
                masks = batch.targets if self.keeps_masks and samples.masks is not None else None
                if not done:
                    result = np.zeros(len(rows), _row_type(array, masks))  # what lies between fields, too
                result[FEATURES][done : done + len(batch)] = array
                if masks is not None:
                    result[MASKS][done : done + len(batch)] = masks
                done += len(batch)
        return result

    def _mask_stamps(self, samples: Samples, rows: np.ndarray) -> list[bytes] | None:
        """What tells the masks of these samples from any other state of them."""
        if not self.keeps_masks or samples.masks is None:
            return None
        return [samples.masks.stamp(row) for row in rows.tolist()]

    def _to_array(self, features: torch.Tensor) -> np.ndarray:
        """A copy; maps as N H W C where the model reads them so, since reordering costs as much as a layer."""
        if self.channels_last and features.ndim == 4:
            features = features.permute(0, 2, 3, 1)
        return features.contiguous().numpy().copy()

    def to_tensor(self, array: np.ndarray) -> torch.Tensor:
        """What the tail takes, of an array that nobody else uses."""
        tensor = torch.from_numpy(array).to(self.device, non_blocking=True)
        return tensor.permute(0, 3, 1, 2) if self.channels_last and tensor.ndim == 4 else tensor

    def _open(self, name: str, num: int, has_masks: bool) -> np.ndarray | None:
        if self.folder is None or not (self.folder / name).exists():
            return None
        try:
            array = _mapped(self.folder / name)
        except (ValueError, OSError, EOFError) as error:
            log.warning("%s is damaged (%s): its features are computed again", self.folder / name, error)
            return None
        if array.dtype.names != ((FEATURES, MASKS) if has_masks else (FEATURES,)) or len(array) != num:
            log.warning("%s holds something else: its features are computed again", self.folder / name)
            return None
        mark_used(self.folder / name)
        return array

    def _save(self, name: str, array: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Keep an array as a file and hand back its map; in memory where there is no folder or no room."""
        if self.folder is None:
            return array
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not make_room(self.folder.parent, array.nbytes, frozenset(names)):
                return array
            with temporary.open("wb") as file:
                np.save(file, array)
            temporary.replace(self.folder / name)
            return _mapped(self.folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            log.warning("features stay in memory: %s cannot be written (%s)", self.folder, error.strerror)
            return array


@dataclass(frozen=True)
class Prefix(Computed):
    """The frozen part of a model up to a cut, and what is asked of it.

    `identity` is the model's name with the versions of the code it is made of, and the hash of everything frozen.
    """

    module: nn.Module
    cut: Cut
    identity: tuple[str, ...]
    channels_last: bool
    device: torch.device
    precision: torch.dtype | None
    workers: int
    folder: Path | None
    at_once: AtOnce = field(default_factory=AtOnce)

    keeps_masks = True

    @property
    def made_by(self) -> tuple[Any, ...]:
        return self.identity, self.cut

    def reader(self, preprocessing: Preprocessing) -> Callable[[np.ndarray], torch.Tensor]:
        inputs = InputBuffer(preprocessing, self.device, self.channels_last)
        return lambda images: prefix_features(self.module, self.cut, inputs(images))


def _mapped(path: Path) -> np.ndarray:
    """A plain view of the file: numpy's own class for maps costs microseconds at every look."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def hash_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and values."""
    digest = sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def feature_batches(
    table: FeatureTable, samples: Samples, wanted: Iterable[np.ndarray]
) -> Generator[Batch, None, None]:
    """Batches whose `images` are features; `wanted` are places in an epoch's order."""
    for places in wanted:
        indices = places % len(samples)
        masks = table.masks(indices)
        targets = samples.targets[indices] if masks is None else masks
        yield Batch(table.take(indices), targets, samples.keys[indices], indices)
