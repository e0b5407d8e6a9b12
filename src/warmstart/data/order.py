"""Which samples an epoch shows when, and how they are cut into optimizer steps: functions of (seed, epoch) alone.

A place in an order is `index + repeat * N`: a balanced order shows an image of a rare class several times
in an epoch, and `repeat` gives each showing an augmentation of its own.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from warmstart.data import counters


def epoch_order(num: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num), int64, that depends on nothing else."""
    return counters.generator(seed, epoch, counters.ORDER).permutation(num)


def balanced_order(targets: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many places as images, int64 (N,), with equally many of every class (to within one).

    The images of a class come in a shuffled row, again and again until its share is full; so a rare
    class repeats its images evenly, and of a frequent one each epoch shows another part. Which
    classes get the remainder changes with the epoch.
    """
    num, labels = len(targets), np.unique(targets)
    shares = np.full(len(labels), num // len(labels))
    shares[(np.arange(num % len(labels)) + epoch) % len(labels)] += 1
    places = []
    for label, share in zip(labels.tolist(), shares.tolist(), strict=True):
        members = np.flatnonzero(targets == label)
        shuffled = counters.generator(seed, epoch, counters.BALANCE, label).permutation(members)
        turn = np.arange(share)
        places.append(shuffled[turn % len(members)] + turn // len(members) * num)
    everything = np.concatenate(places)
    return everything[epoch_order(num, seed, epoch)]


def weighted_order(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many places as images, int64 (N,), each image in proportion to its weight > 0, float64 (N,).

    Image i comes N w_i / sum(w) times, rounded up or down by chance (systematic sampling: one random number for all
    of them), so what a weight means does not change from epoch to epoch as it does with independent draws.
    """
    num = len(weights)
    generator = counters.generator(seed, epoch, counters.BALANCE)
    shuffled = generator.permutation(num)
    ends = np.cumsum(weights[shuffled])
    marks = (np.arange(num) + generator.random()) * (ends[-1] / num)
    drawn = shuffled[np.minimum(np.searchsorted(ends, marks, side="right"), num - 1)]
    found, times = np.unique(drawn, return_counts=True)
    turn = np.arange(num) - np.repeat(np.cumsum(times) - times, times)
    everything = np.repeat(found, times) + turn * num
    return everything[epoch_order(num, seed, epoch)]


def epoch_windows(order: np.ndarray, batch_size: int, accumulate: int) -> list[list[np.ndarray]]:
    """Windows of micro-batches of places; one window is one optimizer step.

    A window has batch_size x accumulate items, the last one what is left. No item is dropped, and none
    is left alone, as a norm layer cannot learn from one item: a last window of one joins the window
    before it, and a window is cut evenly. So a window may be one item larger than asked, and for
    batch_size 2 a micro-batch may hold 3.
    """
    size = batch_size * accumulate
    starts = list(range(0, len(order), size))
    if size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [_cut(order[start:end], batch_size) for start, end in pairwise([*starts, len(order)])]


def _cut(window: np.ndarray, batch_size: int) -> list[np.ndarray]:
    num = -(-len(window) // batch_size)
    if batch_size > 1:
        num = max(1, min(num, len(window) // 2))
    return np.array_split(window, num)
