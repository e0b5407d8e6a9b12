"""Leakage: images of one person, video or camera, or the very same picture, in two splits.

Then a model is tested on what it was trained on, and its scores are too good. Shapes: N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Leakage:
    """What a division lets through: `torn` groups, and images of val and test whose group, or whose very bytes, are in
    the training images too."""

    how: str
    torn: int
    images: int
    copies: int


def joined(groups: np.ndarray | None, digests: Sequence[bytes]) -> np.ndarray:
    """int64 (N,), numbered from 0: the groups (None: each image is one), those that share a picture made one."""
    codes = np.arange(len(digests)) if groups is None else np.unique(groups, return_inverse=True)[1]
    parent = np.arange(int(codes.max()) + 1)

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = int(parent[code])
        return code

    first: dict[bytes, int] = {}
    for code, digest in zip(codes.tolist(), digests, strict=True):
        parent[root(code)] = root(first.setdefault(digest, code))
    return np.unique([root(code) for code in codes.tolist()], return_inverse=True)[1]


def leakage(how: str, words: np.ndarray, groups: np.ndarray, digests: Sequence[bytes]) -> Leakage:
    is_train = words == "train"
    num_splits = Counter(group for group, _ in set(zip(groups.tolist(), words.tolist(), strict=True)))
    torn = sum(num > 1 for num in num_splits.values())
    seen = {digest for digest, known in zip(digests, is_train, strict=True) if known}
    copies = sum(digest in seen for digest, known in zip(digests, is_train, strict=True) if not known)
    images = int(np.isin(groups[~is_train], groups[is_train]).sum())
    return Leakage(how, torn, images, copies)
