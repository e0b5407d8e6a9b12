"""Counter-based random numbers: what is drawn depends on what it is for, never on who asks or when.

The key of the generator is (seed, epoch); its counter holds the item and the purpose, so that no two
purposes share a stream and no draw shifts another.
"""

from __future__ import annotations

import numpy as np

# Purposes; the numbers are part of every recorded run.
AUGMENT, ORDER, SPLIT, LIMIT, TRAIN_SUBSET, CHECK, BALANCE, MIX = range(8)
SOURCE, REPLAY, FISHER = 32, 33, 34
HELD_OUT, EPISODE, FIXED_EPISODE = 48, 49, 50
TASKS = 64


def generator(seed: int, epoch: int, purpose: int, item: int = 0) -> np.random.Generator:
    """A fresh generator for one item (a sample's key, a class) of one purpose; about 8 us."""
    # explicit uint64: numpy makes float64, and so loses bits, of a list of mixed integer types
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, item, purpose, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
