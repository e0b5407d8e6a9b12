"""Groups of images that never cross a split: one patient, one camera, one burst of pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from warmstart.data.samples import Samples, Source
from warmstart.errors import UserError, listing


def group_by_pattern(source: Source, pattern: str) -> Source:
    """The source with the groups that the one capture group of `pattern` names in each id.

    An id in which the pattern finds nothing is a group of its own. Raises UserError where that is all of them.
    """
    search = re.compile(pattern).search
    names: dict[tuple[str | None, str], int] = {}  # (found, "") or (None, id) -> code
    splits = {}
    for split, samples in source.splits.items():
        found = [(match[1] or None) if (match := search(name)) else None for name in samples.ids]
        keys = [(word, name if word is None else "") for word, name in zip(found, samples.ids, strict=True)]
        codes = np.array([names.setdefault(key, len(names)) for key in keys], dtype=np.int64)
        splits[split] = replace(samples, groups=codes)
    num_alone = sum(word is None for word, _ in names)
    if num_alone == len(names):
        raise UserError(
            f"--group {pattern} matches none of the {num_alone} ids, such as {listing(_ids(source)[:3])}",
            "a pattern that is found in the ids of the images",
        )
    sizes = np.bincount(np.concatenate([samples.groups for samples in splits.values()]))
    note = f"--group {pattern}: {len(names) - num_alone} groups of up to {sizes.max()} images"
    if num_alone:
        note += f"; {num_alone} images that it does not match are each their own group"
    return replace(source, splits=splits, notes=(*source.notes, note))


def _ids(source: Source) -> list[str]:
    return [name for samples in source.splits.values() for name in samples.ids]


def check_given_splits(splits: dict[str, Samples], is_asked: bool) -> list[str]:
    """The note on groups that lie in more than one of the splits that a data set came with.

    Raises UserError where the user asked for groups (`is_asked`) instead of a column just being there.
    """
    grouped = {split: samples.groups for split, samples in splits.items() if samples.groups is not None}
    if not grouped:
        return []
    codes = np.concatenate([np.unique(groups) for groups in grouped.values()])
    _, num_splits = np.unique(codes, return_counts=True)
    num_crossing, num = int((num_splits > 1).sum()), len(num_splits)
    if not num_crossing:
        return [f"none of {num} groups is in two of the splits"]
    crossing = np.flatnonzero(np.bincount(codes) > 1)
    members = [
        name
        for samples in splits.values()
        for name, code in zip(samples.ids, samples.groups if samples.groups is not None else (), strict=True)
        if code == crossing[0]
    ]
    told = (
        f"{num_crossing} of {num} groups are in more than one of the splits as given, "
        f"e.g. that of {listing(members, 3)}"
    )
    if is_asked:
        raise UserError(
            told,
            "every group in one split (--group)",
            "give the data without splits, so that they are split by groups, or leave --group out",
        )
    return [f"{told}; their scores are too good if its images are alike"]
