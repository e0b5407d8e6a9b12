"""From the splits that data came with to train, val and test: as given, carved out of train, or divided."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data.groups import check_given_splits
from warmstart.data.samples import Samples
from warmstart.data.splits import group_split, stratified_split
from warmstart.errors import listing


def divide(
    found: dict[str, Samples], settings: DataConfig, seed: int, known: Mapping[str, str]
) -> tuple[dict[str, Samples], list[str]]:
    """train, and val and test where there are any; with the sentences that say how they came about.

    An image whose id is `known` keeps its split, unless the data say another.
    """
    train_ratio, val_ratio = settings.train_ratio, settings.val_ratio
    if "all" in found:
        rest = 1 - train_ratio - val_ratio
        shares = {"train": train_ratio, "val": val_ratio, "test": rest if rest > 1e-9 else 0.0}
        splits = _split(found["all"], shares, seed, known)
        missing = [name for name, share in shares.items() if share > 0 and name not in splits]
        notes = [f"too few images per class for a {name} split" for name in missing]
        sizes = ", ".join(f"{name} {len(samples)}" for name, samples in splits.items())
        whole = "" if found["all"].groups is None else ", by whole groups,"
        return splits, [f"no splits given: divided{whole} by train_ratio and val_ratio into {sizes}", *notes]
    names, notes = listing(found), check_given_splits(found, settings.group is not None)
    if "val" in found:
        return found, [f"splits as given: {names}; train_ratio and val_ratio have no effect", *notes]
    if val_ratio == 0 and not known:
        return found, [f"splits as given: {names}; no validation images, as val_ratio is 0", *notes]
    carved = _split(found["train"], {"train": train_ratio, "val": val_ratio}, seed, known)
    if "val" not in carved:
        return found, [
            f"splits as given: {names}; too few training images per class to make a val split of them",
            *notes,
        ]
    share = val_ratio / (train_ratio + val_ratio)
    note = (
        f"no val split: {len(carved['val'])} of {len(found['train'])} training images"
        f" (val_ratio / (train_ratio + val_ratio) = {share:.3g}) became val; test as given"
    )
    return {**carved, "test": found["test"]}, [note, *notes]


def _split(
    samples: Samples, shares: dict[str, float], seed: int, known: Mapping[str, str]
) -> dict[str, Samples]:
    held = set(known.values())
    wanted = {name: share for name, share in shares.items() if share > 0 or name in held}
    number = {name: part for part, name in enumerate(wanted)}
    fixed = np.array([number.get(known.get(name, ""), -1) for name in samples.ids], dtype=np.int64)
    if samples.groups is None:
        parts = stratified_split(samples.targets, wanted, seed, fixed)
    else:
        parts = group_split(samples.targets, samples.groups, wanted, seed, fixed)
    return {name: samples.subset(indices) for name, indices in parts.items() if len(indices)}
