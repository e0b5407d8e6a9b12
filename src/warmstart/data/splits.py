"""Dividing and thinning a data set, class by class, reproducibly. Indices are int64 and sorted.

Targets are int64 (N,), or uint8 (N, K) multi-hot, whose sets of labels then count as classes (`strata`).
"""

from __future__ import annotations

import numpy as np

from warmstart.data import counters
from warmstart.errors import UserError, listing

_RARE_SET = 10  # images; a set of labels with fewer is no class of its own


def strata(targets: np.ndarray) -> np.ndarray:
    """The class that each image counts as when a data set is divided: int64 (N,).

    Multi-hot targets: the set of labels; a set of fewer than 10 images counts as its rarest label.
    """
    if targets.ndim == 1:
        return targets
    num_labels = targets.shape[1]
    _, first, sets, sizes = np.unique(
        np.packbits(targets, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    totals = targets.sum(axis=0, dtype=np.int64)
    having = targets[first].astype(bool)
    rarest = np.where(having, totals, np.iinfo(np.int64).max).argmin(axis=1)
    is_class = (sizes >= _RARE_SET) | ~having.any(axis=1)
    return np.where(is_class, num_labels + np.arange(len(first)), rarest)[sets.reshape(-1)].astype(np.int64)


def stratified_split(
    targets: np.ndarray, shares: dict[str, float], seed: int, fixed: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Disjoint indices per name that together cover all of `targets`.

    Each class is divided by `shares` (relative to their sum) to the largest remainder; a class with
    at least as many images as there are positive shares is present in each of those. `fixed`, int64 (N,),
    is the number of the part that an image is in already, or -1: only the latter are divided.
    """
    assert shares and min(shares.values()) >= 0 and sum(shares.values()) > 0, shares
    fixed = np.full(len(targets), -1) if fixed is None else fixed
    parts = {name: [np.flatnonzero(fixed == number)] for number, name in enumerate(shares)}
    weights = np.array(list(shares.values()), dtype=np.float64)
    new = np.flatnonzero(fixed < 0)
    for label, members in _members(strata(targets)[new], seed, counters.SPLIT):
        counts = _apportion(len(members), weights, label)
        ends = np.cumsum(counts)[:-1]
        for name, piece in zip(shares, np.split(new[members], ends), strict=True):
            parts[name].append(piece)
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in parts.items()}


def group_split(
    targets: np.ndarray,
    groups: np.ndarray,
    shares: dict[str, float],
    seed: int,
    fixed: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """`stratified_split` by whole `groups` (int64 (N,)): no group is in two parts, so shares are approximate.

    Groups are taken from the largest to the smallest, equal ones in a random order. Each goes to the part
    that lacks most of what it holds: the sum over its classes of (its share of the class) x (images of
    the class that the part still lacks), and the same for all images together. A part without any group
    gets one of the last, so that none stays empty. A group of images that are `fixed` to a part (its number,
    -1 for none; int64 (N,)) goes, with all that is new in it, to the part that has most of them.

    Raises UserError where there are fewer groups than parts.
    """
    assert shares and min(shares.values()) >= 0 and sum(shares.values()) > 0, shares
    fixed = np.full(len(targets), -1) if fixed is None else fixed
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < len(shares):
        raise UserError(
            f"{len(targets)} images are in {len(sizes)} groups, too few for {listing(shares)}",
            f"at least {len(shares)} groups, as a group is never divided",
            "--group by something finer, or fewer splits (--train-ratio, --val-ratio)",
        )
    _, classes = np.unique(strata(targets), return_inverse=True)
    classes = np.stack([classes, np.full_like(classes, classes.max() + 1)])  # the last one: any image
    totals = np.bincount(classes.reshape(-1))
    weights = np.array(list(shares.values())) / sum(shares.values())
    lacking = weights[:, None] * totals
    part_of, is_filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(len(shares), dtype=bool)
    shuffled = counters.generator(seed, 0, counters.SPLIT).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    votes = np.zeros((len(sizes), len(shares)), dtype=np.int64)
    np.add.at(votes, (group_of[fixed >= 0], fixed[fixed >= 0]), 1)
    order = order[np.argsort(votes[order].sum(axis=1) == 0, kind="stable")]  # known groups first
    for num_left, group in zip(range(len(sizes), 0, -1), order.tolist(), strict=True):
        held, counts = np.unique(classes[:, members[group]], return_counts=True)
        gain = lacking[:, held] @ (counts / totals[held])
        if (~is_filled).sum() >= num_left:
            gain[is_filled] = -np.inf
        part = int(votes[group].argmax()) if votes[group].any() else int(gain.argmax())
        part_of[group], is_filled[part] = part, True
        lacking[part, held] -= counts
    parts = np.where(fixed >= 0, fixed, part_of[group_of])
    return {name: np.flatnonzero(parts == number) for number, name in enumerate(shares)}


def stratified_limit(targets: np.ndarray, limit: float | int, seed: int) -> np.ndarray:
    """Indices of a share (`limit` < 1) or a number of the items, in the proportions of the classes.

    Every class keeps at least one item where the number allows it. A limit at or above N keeps all.
    """
    assert limit > 0, limit
    total = max(1, round(limit * len(targets))) if limit < 1 else int(limit)
    if total >= len(targets):
        return np.arange(len(targets))
    classes = _members(strata(targets), seed, counters.LIMIT)
    if limit < 1:
        total = max(total, len(classes))
    counts = _apportion(total, np.array([len(members) for _, members in classes], dtype=np.float64), 0)
    kept = [members[:count] for (_, members), count in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(kept))


def _members(targets: np.ndarray, seed: int, purpose: int) -> list[tuple[int, np.ndarray]]:
    """(class, its indices shuffled), each class by a generator of its own."""
    found = []
    for label in np.unique(targets).tolist():
        indices = np.flatnonzero(targets == label)
        found.append((label, counters.generator(seed, 0, purpose, label).permutation(indices)))
    return found


def _apportion(total: int, weights: np.ndarray, turn: int) -> np.ndarray:
    """Whole numbers that sum to `total`, proportional to `weights`, by largest remainder.

    Equal remainders are served in turn, starting at another place for each `turn`, so that the
    roundings of many small classes do not all favour the same split.
    """
    quotas = total * weights / weights.sum()
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    places = (np.arange(len(weights)) - turn) % len(weights)
    order = np.lexsort((places, -np.round(quotas - counts, 9)))
    counts[order[: total - counts.sum()]] += 1
    positive = np.flatnonzero(weights > 0)
    if total >= len(positive):
        for place in positive[counts[positive] == 0]:
            counts[np.argmax(counts)] -= 1
            counts[place] = 1
    return counts
