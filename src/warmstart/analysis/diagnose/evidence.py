"""What single rules look up beside the rows: answers on val, and copies of val images in train. Imports no torch.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from warmstart.config.io import from_dict
from warmstart.data.decode import CorruptImage
from warmstart.data.pool import Pool
from warmstart.data.samples import Source
from warmstart.data.sources import open_source
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import layout
from warmstart.run.reader import Run

_MOST_IMAGES = 50_000  # of train and val; more are not read for a diagnosis


@dataclass(frozen=True)
class Answers:
    """Scores (N, K) of the best step on val, targets (N,)."""

    ids: tuple[str, ...]
    targets: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Copies:
    """Val images whose bytes are a training image's too; `pairs` name some of them, VAL = TRAIN."""

    num: int
    num_val: int
    pairs: tuple[str, ...]


def answers_of(run: Run) -> Answers | None:
    """Of the best step, as `evaluate` and the end of a run write them; None where there are none yet."""
    best = run.pointer(layout.BEST)
    if best is None or run.resolved.get("task") != "classification":
        return None
    place = run.path / layout.EVALUATIONS / f"val@{best}" / "predictions.parquet"
    path = place if place.exists() else run.predictions("val", best)
    if not path.exists():
        return None
    found = read_predictions(path)
    if found.targets is None or found.targets.ndim > 1 or (found.targets < 0).any():
        return None
    if not len(found.ids) or not np.isfinite(found.scores).all():
        return None
    return Answers(found.ids, found.targets.astype(np.int64), found.scores, found.classes)


def divided_source(run: Run) -> Source | None:
    """The run's data, divided as it divided them; None where they are gone, are masks, or have no val."""
    settings = from_dict(run.config).data
    try:
        source = open_source(
            run.resolved["data"]["path"], group=settings.group, label_columns=settings.label_columns
        )
    except UserError:  # without images there is still a diagnosis, which names what it could not ask
        return None
    if source.ignore is not None:
        return None
    whole = source.splits.get("all", source.splits.get("train"))
    if "val" not in source.splits and whole is not None and run.splits:
        words = np.array([run.splits.get(name, "") for name in whole.ids])
        parts = {
            split: whole.subset(np.flatnonzero(words == split)) for split in dict.fromkeys(words) if split
        }
        source = replace(source, splits={**source.splits, **parts})
        source.splits.pop("all", None)
    return source if {"train", "val"} <= set(source.splits) else None


def find_copies(source: Source) -> Copies | None:
    """Byte for byte; of files only those of equal size are read. None: too many images."""
    pool = Pool.of(source)
    train, val = (np.flatnonzero(pool.words == split).tolist() for split in ("train", "val"))
    if len(train) + len(val) > _MOST_IMAGES:
        return None
    sizes = {index: _size(pool, index) for index in (*train, *val)}
    shared = {sizes[index] for index in train} & {sizes[index] for index in val} - {-1}
    known: dict[bytes | None, str] = {}
    for index in train:
        if sizes[index] in shared:
            known.setdefault(_digest(pool, index), pool.ids[index])
    known.pop(None, None)
    found = [(pool.ids[row], _digest(pool, row)) for row in val if sizes[row] in shared]
    pairs = tuple(f"{name} = {known[digest]}" for name, digest in found if digest in known)
    return Copies(len(pairs), len(val), pairs)


def _size(pool: Pool, index: int) -> int:
    """Bytes of an image's file; -1 where it is gone, and 0 for all that are in no file of their own."""
    file = pool.file(index)
    return 0 if file is None else file.stat().st_size if file.is_file() else -1


def _digest(pool: Pool, index: int) -> bytes | None:
    try:
        return blake2b(pool.encoded(index), digest_size=16).digest()
    except CorruptImage:
        return None
