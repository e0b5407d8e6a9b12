"""Objectives: pure functions of (outputs, targets) that give (loss_sum, weight).

The loss of a window (accumulated batches, processes, parts of a split batch) is the sum of its
`loss_sum`s divided by the sum of its `weight`s, so a window cut in any way has the loss of one batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight), both scalars on the device of `logits`, without a host sync.

    `logits` is (N, K), `class_weights` (K,) on the same device, `targets` (N,) class indices or (N, K)
    shares of the classes that add up to 1. With shares q (an index y is q[y] = 1), weights w (1 where
    None), smoothing s and log-probabilities p of one item (Szegedy et al. 2016, section 7, as torch
    weighs it):

        loss = -sum_c w[c] ((1 - s) q[c] + s / K) p[c]        weight = sum_c w[c] q[c]

    which for indices makes loss_sum / weight what torch's `cross_entropy(reduction="mean")` gives; for
    shares torch divides by N, whatever the weights. Where every target of a window has weight 0 the
    quotient is NaN, in torch too.
    """
    # Sums over classes and items in bfloat16 or float16 lose digits that the loss needs; float64 stays.
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if class_weights is None else class_weights.to(exact.dtype)
    targets = targets.to(exact.dtype) if targets.ndim == 2 else targets
    loss_sum = F.cross_entropy(exact, targets, weights, reduction="sum", label_smoothing=label_smoothing)
    if weights is None:
        weight = torch.full((), len(targets), dtype=exact.dtype, device=exact.device)
    else:
        weight = weight_of(targets, weights)
    return loss_sum, weight


def weight_of(targets: Tensor, class_weights: Tensor, ignore: int = -100) -> Tensor:
    """The sum of the weights (K,) of indices (N,) or masks (N, h, w), or of shares (N, K); `ignore` weighs nothing."""
    if targets.ndim == 2:
        return (targets.to(class_weights.dtype) @ class_weights).sum()
    labels = targets.long()
    valid = labels != ignore
    return torch.where(valid, class_weights[labels.masked_fill(~valid, 0)], 0).sum()


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, positive_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight) of N x K yes-or-no questions, both scalars on the device of `logits`.

    `logits` and `targets` (0 or 1) are (N, K), `positive_weights` (K,) on the same device. With target
    t = (1 - s) y + s / 2 for smoothing s, positive weight w (1 where None) and probability p = sigmoid(logit):

        loss = -w t log p - (1 - t) log(1 - p)        weight = 1 for each of the N x K

    which makes loss_sum / weight what torch's `binary_cross_entropy_with_logits(reduction="mean")` gives.
    The weight does not know w, so an answer counts the same in whichever part of a window it lies.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    smoothed = targets.to(exact.dtype) * (1 - label_smoothing) + label_smoothing / 2
    weights = None if positive_weights is None else positive_weights.to(exact.dtype)
    loss_sum = F.binary_cross_entropy_with_logits(exact, smoothed, pos_weight=weights, reduction="sum")
    return loss_sum, torch.full((), targets.numel(), dtype=exact.dtype, device=exact.device)


def image_text_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight) of the symmetric contrastive loss that CLIP was trained with (Radford et al. 2021, figure 3),
    between the images of a batch and the texts of their own classes (Goyal et al. 2023, FLYP, equation 2).

    `logits` (N, K) are similarities to the texts of all classes, `targets` (N,) class indices. With S = logits[:, y],
    (N, N), it is the mean of the cross entropies of rows (which text is the image's) and columns (which image is the
    text's). Two images of a class have the same text, and each counts as wrong for the other, as in the paper.
    It is a loss of the batch: cut otherwise, an image is compared with others.
    """
    similarity = logits.to(torch.promote_types(logits.dtype, torch.float32))[:, targets.long()]
    own = torch.arange(len(targets), device=logits.device)
    rows = F.cross_entropy(similarity, own, reduction="sum")
    columns = F.cross_entropy(similarity.T, own, reduction="sum")
    return (rows + columns) / 2, torch.full((), len(targets), dtype=similarity.dtype, device=logits.device)


def image_text_sigmoid(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight) as `image_text_softmax`, by the loss of SigLIP (Zhai et al. 2023, equation 1): every pair of
    an image and a text is a question of its own, -log sigmoid(+-S_ij). Texts that are equal have equal answers."""
    similarity = logits.to(torch.promote_types(logits.dtype, torch.float32))[:, targets.long()]
    sign = torch.where(targets[:, None] == targets[None, :], 1.0, -1.0).to(similarity.dtype)
    loss_sum = -F.logsigmoid(sign * similarity).sum()
    return loss_sum, torch.full((), len(targets), dtype=similarity.dtype, device=logits.device)


def divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T^2 times the sum over items of KL(softmax(answers / T) || softmax(logits / T)); both are (N, K).

    Its gradient is that of the cross entropy of Li and Hoiem (2018, equation 3), times T^2, so that it does not
    fade as T grows (Hinton et al. 2015, section 2.1); it is 0 where both agree.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    ours = F.log_softmax(logits.to(exact) / temperature, dim=1)
    theirs = F.log_softmax(answers.to(exact) / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)


def binary_divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """`divergence` of N x K yes-or-no questions: T^2 times the sum of KL between the two Bernoulli answers."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    ours, theirs = logits.to(exact) / temperature, answers.to(exact) / temperature
    share = torch.sigmoid(theirs)
    yes = F.logsigmoid(theirs) - F.logsigmoid(ours)
    no = F.logsigmoid(-theirs) - F.logsigmoid(-ours)
    return temperature**2 * (share * yes + (1 - share) * no).sum()


def mean_answers(answers: Sequence[Tensor], temperature: float, multi_label: bool = False) -> Tensor:
    """Logits of the mean probabilities at `temperature`: what several teachers say together; of one its own.

    `answers` are logits (N, K, ...) each, and so is the result: its softmax at `temperature` (of several labels its
    sigmoid) is the mean of theirs, as Hinton et al. (2015, section 1) average an ensemble.
    """
    if len(answers) == 1:
        return answers[0]
    stacked = torch.stack([each.to(torch.promote_types(each.dtype, torch.float32)) for each in answers])
    stacked = stacked / temperature
    if multi_label:
        yes, no = torch.logsumexp(F.logsigmoid(stacked), 0), torch.logsumexp(F.logsigmoid(-stacked), 0)
        return temperature * (yes - no)
    return temperature * (torch.logsumexp(stacked.log_softmax(dim=2), 0) - math.log(len(answers)))


@functools.lru_cache(maxsize=8)
def on_device(weights: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The weights as a tensor, copied once: a copy in each step would make the host wait for the device."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never serve a backward pass
        return torch.tensor(weights, dtype=dtype, device=device)
