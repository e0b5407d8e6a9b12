"""Arrays of a Python program as a data set: `finetune(model, data=(images, labels))`.

They are known by a hash of their content, under which this process keeps them; a config then names them
as `memory:HASH`. Nothing is copied, so the arrays are not to be changed while a run uses them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.config.places import MEMORY
from warmstart.data.folders import SPLIT_WORDS
from warmstart.data.labels import Labels, check_names, read_labels
from warmstart.data.samples import ArrayPixels, Samples, Source
from warmstart.errors import UserError, closest, listing

_FORM = '(images, labels), or {"train": (images, labels), "val": ..., "test": ..., "classes": [...]}'
_IMAGES = "images as uint8 (N, H, W) or (N, H, W, C)"
_MOST_CHANNELS = 16  # of arrays whose second axis could be the channels' as well

_kept: dict[str, Source] = {}


def keep(data: Any) -> str:
    """Hold arrays (numpy or torch) for this process; the name by which `open_memory` finds them.

    Images are uint8 (N, H, W) or (N, H, W, C); labels are numbers or names (N,), or 0 and 1 (N, K) for sets.
    Raises UserError for anything else.
    """
    parts = dict(data) if isinstance(data, Mapping) else {"all": data}
    names = parts.pop("classes", None)
    classes = None if names is None else tuple(map(str, names))
    check_names(classes or ())
    arrays = {}
    for word, pair in parts.items():
        split = "all" if word == "all" else SPLIT_WORDS.get(str(word).lower())
        if split is None or split in arrays:
            hint = closest(str(word), ["classes", *SPLIT_WORDS])
            raise UserError(f"the data have a part called {word!r}", _FORM, hint)
        arrays[split] = _pair(str(word), pair)
    notes: tuple[str, ...] = ()
    if len(arrays) == 1 and "all" not in arrays:
        notes = (f"the arrays are {next(iter(arrays))} only: they are split",)
        arrays = {"all": next(iter(arrays.values()))}
    if not arrays or ("all" in arrays and len(arrays) > 1):
        raise UserError(f"the data have the parts {listing(arrays) or 'none'}", _FORM)
    labels = _labels([labels for _, labels in arrays.values()], classes)
    ends = np.cumsum([len(images) for images, _ in arrays.values()])[:-1]
    splits = {
        split: Samples(tuple(f"{split}/{n:06d}" for n in range(len(images))), targets, ArrayPixels(images))
        for (split, (images, _)), targets in zip(arrays.items(), np.split(labels.targets, ends), strict=True)
    }
    source = Source(labels.names, splits, _fingerprint(labels.names, splits), (*labels.notes, *notes))
    place = MEMORY + source.fingerprint[:16]
    _kept[place] = source
    return place


def open_memory(place: str) -> Source:
    """What `keep` held. Raises UserError in a process that was not given the arrays."""
    if place not in _kept:
        raise UserError(
            f"{place}: the data were arrays in memory, and this program does not have them",
            "the same arrays, passed again",
            "in Python: ws.resume(run, data=...), ws.evaluate(run, data=...)",
        )
    return _kept[place]


def _pair(word: str, pair: Any) -> tuple[np.ndarray, Any]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(f"{word}: {type(pair).__name__} is no pair of images and labels", _FORM)
    images, labels = _array(pair[0]), _array(pair[1])
    if not images.size or images.ndim not in (3, 4) or images.dtype == object:
        kind = "a list of images of different sizes" if images.dtype == object else "an array"
        raise UserError(f"{word}: the images are {kind} of shape {images.shape}", _IMAGES)
    if images.dtype != np.uint8:
        is_real = np.issubdtype(images.dtype, np.floating)
        fix = "(images * 255).round().astype(np.uint8), if they lie in [0, 1]" if is_real else ""
        raise UserError(
            f"{word}: the images are {images.dtype}",
            f"{_IMAGES}: 0 is black, 255 white",
            fix or "images.astype(np.uint8), if they lie in 0..255",
        )
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] > _MOST_CHANNELS:
        raise UserError(
            f"{word}: the images have the shape {images.shape}: the channels seem to come first",
            _IMAGES,
            "images.transpose(0, 2, 3, 1); of a tensor: images.permute(0, 2, 3, 1)",
        )
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        raise UserError(
            f"{word}: {len(images)} images, and labels of the shape {labels.shape}",
            "one label per image: (N,), or (N, K) of 0 and 1",
        )
    return images, labels


def _array(values: Any) -> np.ndarray:
    """A numpy array of an array, a tensor on any device, or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError:  # numpy's word for rows of different lengths
        return np.asarray([*values, None], dtype=object)[:-1]


def _labels(found: list[np.ndarray], classes: tuple[str, ...] | None) -> Labels:
    """The labels of all splits, one after the other."""
    if len({labels.shape[1:] for labels in found}) > 1:
        shapes = listing(labels.shape for labels in found)
        raise UserError(f"the labels of the splits have the shapes {shapes}", "one kind of label")
    labels = np.concatenate(found)
    if labels.ndim == 1:
        if np.issubdtype(labels.dtype, np.floating):
            raise UserError(f"the labels are {labels.dtype}", "whole numbers, or names")
        return read_labels("labels", labels.tolist(), classes)
    if not np.isin(labels, (0, 1)).all():
        raise UserError(
            f"labels of the shape {labels.shape} hold more than 0 and 1", "0 or 1 per image and class"
        )
    names = classes or tuple(map(str, range(labels.shape[1])))
    if len(names) != labels.shape[1]:
        raise UserError(f"{len(names)} classes, and labels of the shape {labels.shape}", "a column per class")
    return Labels(labels.astype(np.uint8), names)


def _fingerprint(names: tuple[str, ...], splits: dict[str, Samples]) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for split, samples in splits.items():
        assert isinstance(samples.pixels, ArrayPixels)
        images = samples.pixels.array
        digest.update(f"{split}{images.shape}{samples.targets.shape}".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(samples.targets).data)
    return digest.hexdigest()
