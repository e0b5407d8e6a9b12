"""The same images, divided anew or without copies, as a CSV table; no image is copied or changed."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np

from warmstart.data.pool import Pool, digests_of
from warmstart.data.samples import FilePixels, Source
from warmstart.data.splits import stratified_split
from warmstart.errors import UserError
from warmstart.run.writer import write_text

DIVIDE, DROP_COPIES = "divide", "drop copies"
_VAL_SHARE = 0.2


def write_table(source: Source, wanted: Collection[str | None], target: Path, seed: int) -> Path | None:
    """path, label and split of every image that stays; None for images that are in no files, or have sets of labels.

    `divide` draws train and val by class, a fifth of them or as many as before for val; test stays. `drop copies`
    leaves out training images that are val or test images, byte for byte.

    Raises:
        UserError: the file exists.
    """
    parts = list(source.splits.values())
    if any(part.targets.ndim > 1 or not isinstance(part.pixels, FilePixels) for part in parts):
        return None
    if target.exists():
        raise UserError(f"{target} exists already", "a new file", "another name for --write")
    pool = Pool.of(source)
    assert pool.words is not None, "a source with train and val"
    words = pool.words.astype("U5")
    keep = np.ones(len(words), dtype=bool)
    if DIVIDE in wanted:
        rows = np.flatnonzero(np.isin(words, ("train", "val")))
        share = max(_VAL_SHARE, float((words == "val").sum() / len(rows)))
        found = stratified_split(pool.targets[rows], {"train": 1 - share, "val": share}, seed)
        for split, chosen in found.items():
            words[rows[chosen]] = split
    if DROP_COPIES in wanted:
        digests, _ = digests_of(pool, None)
        held = {digest for digest, word in zip(digests, words, strict=True) if word != "train"}
        keep &= ~np.array([w == "train" and d in held for d, w in zip(digests, words, strict=True)])
    text = io.StringIO()
    writes = csv.writer(text, lineterminator="\n")
    writes.writerow(("path", "label", "split"))
    for index in np.flatnonzero(keep).tolist():
        path = pool.file(index)
        assert path is not None, "checked above"
        writes.writerow((path.absolute(), source.classes[pool.targets[index]], words[index]))
    write_text(target, text.getvalue())
    return target
