"""IDX files, the format of MNIST and its relatives: images and labels in pairs, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from warmstart.data.samples import ArrayPixels, Samples, Source
from warmstart.errors import UserError, listing

_NAME = re.compile(r"^(?:.+-)?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?$")
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_LONGEST_HEADER, _PIECE = 4 + 4 * 4, 2**24  # bytes
_PAIR = "pairs such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"


def idx_files(root: Path) -> dict[tuple[str, str], Path]:
    """(prefix, images | labels) -> file, for every IDX file in `root`; the unpacked one where both are there."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(root.iterdir(), key=lambda path: (path.suffix != ".gz", path.name)):
        match = _NAME.match(path.name)
        if match is None or not path.is_file():
            continue
        before = found.get((match[1], match[2]))
        if before is not None and before.name.removesuffix(".gz") != path.name:
            raise UserError(
                f"{root} holds two data sets: {before.name} and {path.name}",
                f"one, as {_PAIR}",
                "move one of them to a folder of its own",
            )
        found[match[1], match[2]] = path
    return found


def open_idx(root: Path, files: dict[tuple[str, str], Path]) -> Source:
    """Splits train and test, or `all` where there is one.

    Classes are the labels as text, from 0 to the largest; from 1 where none is 0 and none between is missing.
    """
    prefixes = sorted({prefix for prefix, _ in files}, reverse=True)
    if {"t10k", "test"} <= set(prefixes):
        raise UserError(f"{root} holds both t10k and test files", "one test set", "move one of them away")
    splits, contents = {}, {}
    for prefix in prefixes:
        images, labels = (_partner(root, files, prefix, part) for part in ("images", "labels"))
        splits[_SPLITS[prefix]], contents[prefix] = _read_pair(images, labels, prefix)
    found = np.unique(np.concatenate([samples.targets for samples in splits.values()]))
    first, last = int(found[0]), int(found[-1])
    notes: tuple[str, ...] = ()
    if first == 1 and len(found) == last > 1:
        splits = {split: replace(samples, targets=samples.targets - 1) for split, samples in splits.items()}
        notes = (f"the labels of {root.name} start at 1, not at 0",)
    else:
        first = 0
    if len(splits) == 1:
        notes = (*notes, f"{root.name} has {prefixes[0]} files only: they are split")
        splits = {"all": next(iter(splits.values()))}
    fingerprint = hashlib.sha256("".join(f"{name}:{contents[name]}" for name in sorted(contents)).encode())
    return Source(tuple(map(str, range(first, last + 1))), splits, fingerprint.hexdigest(), notes)


def _partner(root: Path, files: dict[tuple[str, str], Path], prefix: str, part: str) -> Path:
    if (prefix, part) not in files:
        here = listing(path.name for (name, _), path in files.items() if name == prefix)
        raise UserError(
            f"{root} has {here} but no {prefix}-{part} file", _PAIR, "copy the missing file there"
        )
    return files[prefix, part]


def _read_pair(images_path: Path, labels_path: Path, prefix: str) -> tuple[Samples, str]:
    """Samples and the sha256 of both contents."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise UserError(
            f"{images_path} holds an array of shape {images.shape}", "images: (number, height, width)"
        )
    if labels.ndim != 1:
        raise UserError(f"{labels_path} holds an array of shape {labels.shape}", "labels: (number,)")
    if len(images) != len(labels):
        raise UserError(
            f"{images_path.name} has {len(images)} images, {labels_path.name} has {len(labels)} labels",
            "one label per image",
            f"download the pair again; both lie in {images_path.parent}",
        )
    if images.size == 0:
        raise UserError(f"{images_path} holds no images (shape {images.shape})", "at least one image")
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(images.data)
    digest.update(labels.data)
    ids = tuple(f"{prefix}/{index:05d}" for index in range(len(labels)))
    return Samples(ids, labels.astype(np.int64), ArrayPixels(images)), digest.hexdigest()


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of one file. Raises UserError for whatever is not a whole IDX file of bytes."""
    try:
        data = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "a whole (gzipped) IDX file", "download the file again"
        ) from error
    if not _num_dimensions(data):
        raise UserError(
            f"{path} is not an IDX file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}",
            "00 00 08 and the number of dimensions",
            "download the file again; if it is gzipped, its name must end in .gz",
        )
    header = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[start : start + 4], "big") for start in range(4, header, 4))
    if len(data) != header + math.prod(shape):
        raise UserError(
            f"{path} has {len(data)} bytes, its header promises {header + math.prod(shape)} (shape {shape})",
            "a whole IDX file",
            "download the file again",
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _unpacked(path: Path) -> bytes:
    """The content of a gzipped file, no further than its header promises: a few bytes can unpack to any size."""
    with gzip.open(path) as stream:
        data = bytearray(stream.read(_LONGEST_HEADER))
        sizes = [
            int.from_bytes(data[at : at + 4], "big") for at in range(4, 4 + 4 * _num_dimensions(data), 4)
        ]
        promised = math.prod(sizes)
        while len(data) <= promised + _LONGEST_HEADER and (piece := stream.read(_PIECE)):
            data += piece
    return bytes(data)


def _num_dimensions(data: bytes | bytearray) -> int:
    """0 where the header is not one of an IDX file of bytes."""
    is_idx = len(data) >= 4 and data[:2] == b"\0\0" and data[2] == 8 and 1 <= data[3] <= 4
    return data[3] if is_idx else 0
