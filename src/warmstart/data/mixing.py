"""Mixup and CutMix of pairs of training images: functions of (seed, epoch, the epoch's order).

The samples at 2k and 2k + 1 of an epoch's order are partners, wherever the order is cut; the last of an odd
number has none. Shapes: N samples of a batch, M >= N with their partners, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from warmstart.data import counters
from warmstart.errors import UserError


@dataclass(frozen=True, eq=False)
class Mixing:
    """`mixup` and `cutmix` are the alphas of Beta(alpha, alpha), 0 for off; with both, a pair draws which.

    `order` gives the places of an epoch, which no two samples share.
    """

    mixup: float
    cutmix: float
    num_classes: int
    seed: int
    order: Callable[[int], np.ndarray]

    def pairs(self, epoch: int) -> Pairs:
        return Pairs(self, epoch, self.order(epoch))

    def draw(self, epoch: int, pair: int) -> tuple[bool, float, float, float]:
        """(is CutMix, lambda, y, x) of one pair; lambda is the share of a sample that stays its own.

        y and x in [0, 1) are the middle of CutMix's box.
        """
        generator = counters.generator(self.seed, epoch, counters.MIX, pair)
        coin, y, x = generator.random(3).tolist()
        is_cut = coin < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if is_cut else self.mixup
        return is_cut, float(generator.beta(alpha, alpha)), y, x


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one epoch."""

    mixing: Mixing
    epoch: int
    order: np.ndarray  # places

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(places in rising order, where each stands in the epoch's order)."""
        ranks = np.argsort(self.order)
        return self.order[ranks], ranks

    def _positions(self, places: np.ndarray) -> np.ndarray:
        in_order, ranks = self._sorted
        return ranks[np.searchsorted(in_order, places)]

    def partners(self, places: np.ndarray) -> np.ndarray:
        """The partner's place for each of these; a place without one is its own."""
        partners = self._positions(places) ^ 1
        return np.where(
            partners < len(self.order), self.order[np.minimum(partners, len(self.order) - 1)], places
        )

    def complete(self, places: np.ndarray) -> np.ndarray:
        """The places, followed by those of partners that are not among them."""
        return np.concatenate((places, np.setdiff1d(self.partners(places), places)))

    def mix(
        self, places: np.ndarray, images: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 (N, h, w, C), float32 (N, K)) from what belongs to `complete(places)`.

        `targets` are int64 (M,) or multi-hot (M, K); or index masks (M, h, w), of which the boxes move and
        (N, h, w) of the same ids remain. Raises UserError for mixup of those.
        """
        has_masks = targets.ndim == 3
        if has_masks and self.mixing.mixup:
            raise UserError(
                f"--mixup {self.mixing.mixup}: the targets are index masks, whose ids cannot be blended",
                "--cutmix, which moves boxes of the masks with their pixels",
                "--mixup 0",
            )
        labels = np.eye(self.mixing.num_classes, dtype=np.float32)[targets] if targets.ndim == 1 else targets
        everyone = self.complete(places)
        rising = np.argsort(everyone)
        partners = rising[np.searchsorted(everyone[rising], self.partners(places))]
        numbers = (self._positions(places) // 2).tolist()
        draws = {pair: self.mixing.draw(self.epoch, pair) for pair in set(numbers)}
        mixed = images[: len(places)].copy()
        soft = labels[: len(places)].astype(labels.dtype if has_masks else np.float32)
        for row, (partner, pair) in enumerate(zip(partners.tolist(), numbers, strict=True)):
            if partner == row:
                continue
            is_cut, share, *middle = draws[pair]
            if is_cut:
                top, bottom, left, right = _cut_box(images.shape[1:3], share, (middle[0], middle[1]))
                box = np.s_[top:bottom, left:right]
                mixed[row][box] = images[partner][box]
                share = 1 - (bottom - top) * (right - left) / math.prod(images.shape[1:3])
                if has_masks:
                    soft[row][box] = labels[partner][box]
                    continue
            else:
                blend = cv2.addWeighted(images[row], share, images[partner], 1 - share, 0)
                mixed[row] = blend.reshape(mixed[row].shape)
            soft[row] = share * labels[row] + (1 - share) * labels[partner]
        return mixed, soft


def _cut_box(size: tuple[int, ...], share: float, middle: tuple[float, float]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of 1 - share of the area, cut off at the edges (Yun et al. 2019)."""
    ends = []
    for extent, at in zip(size, middle, strict=True):
        centre, half = math.floor(at * extent), int(math.sqrt(1 - share) * extent / 2)
        ends += [max(0, centre - half), min(extent, centre + half)]
    return ends[0], ends[1], ends[2], ends[3]
