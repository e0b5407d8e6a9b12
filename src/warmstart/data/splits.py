"""Dividing and thinning a data set, class by class, reproducibly. Indices are int64 and sorted."""

from __future__ import annotations

import numpy as np

from warmstart.data import counters


def stratified_split(targets: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Disjoint indices per name that together cover all of `targets` (N,).

    Each class is divided by `shares` (relative to their sum) to the largest remainder; a class with
    at least as many images as there are positive shares is present in each of those.
    """
    assert shares and min(shares.values()) >= 0 and sum(shares.values()) > 0, shares
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    weights = np.array(list(shares.values()), dtype=np.float64)
    for label, members in _members(targets, seed, counters.SPLIT):
        counts = _apportion(len(members), weights, label)
        ends = np.cumsum(counts)[:-1]
        for name, piece in zip(shares, np.split(members, ends), strict=True):
            parts[name].append(piece)
    empty = np.zeros(0, dtype=np.int64)
    return {name: np.sort(np.concatenate([empty, *pieces])) for name, pieces in parts.items()}


def stratified_limit(targets: np.ndarray, limit: float | int, seed: int) -> np.ndarray:
    """Indices of a share (`limit` < 1) or a number of the items, in the proportions of the classes.

    Every class keeps at least one item where the number allows it. A limit at or above N keeps all.
    """
    assert limit > 0, limit
    total = max(1, round(limit * len(targets))) if limit < 1 else int(limit)
    if total >= len(targets):
        return np.arange(len(targets))
    groups = _members(targets, seed, counters.LIMIT)
    if limit < 1:
        total = max(total, len(groups))
    counts = _apportion(total, np.array([len(members) for _, members in groups], dtype=np.float64), 0)
    kept = [members[:count] for (_, members), count in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(kept))


def _members(targets: np.ndarray, seed: int, purpose: int) -> list[tuple[int, np.ndarray]]:
    """(class, its indices shuffled), each class by a generator of its own."""
    groups = []
    for label in np.unique(targets).tolist():
        indices = np.flatnonzero(targets == label)
        groups.append((label, counters.generator(seed, 0, purpose, label).permutation(indices)))
    return groups


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
