"""Objectives: pure functions of (outputs, targets) that give (loss_sum, weight).

The loss of a window (accumulated batches, processes, parts of a split batch) is the sum of its
`loss_sum`s divided by the sum of its `weight`s, so a window cut in any way has the loss of one batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight), both scalars on the device of `logits`, without a host sync.

    `logits` is (N, K), `targets` (N,) class indices, `class_weights` (K,) on the same device. With
    target y, weights w (1 where None), smoothing s and log-probabilities p of one item (Szegedy et
    al. 2016, section 7, as torch weighs it):

        loss = -(1 - s) w[y] p[y] - s / K * sum_c w[c] p[c]        weight = w[y]

    which makes loss_sum / weight what torch's `cross_entropy(reduction="mean")` gives. Where every
    target of a window has weight 0 the quotient is NaN, in torch too.
    """
    # Sums over classes and items in bfloat16 or float16 lose digits that the loss needs; float64 stays.
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if class_weights is None else class_weights.to(exact.dtype)
    loss_sum = F.cross_entropy(exact, targets, weights, reduction="sum", label_smoothing=label_smoothing)
    if weights is None:
        weight = torch.full((), targets.numel(), dtype=exact.dtype, device=exact.device)
    else:
        weight = weights[targets].sum()
    return loss_sum, weight
