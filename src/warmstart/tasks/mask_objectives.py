"""Objectives of masks: pure functions of (outputs, targets), as in objectives.py.

Shapes: N images, K classes, h x w the size of the masks. What is sorted or summed over a batch (Dice, Tversky,
Lovasz) is a number of the whole batch: cut in parts, a batch has other ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.tasks.objectives import weight_of

_EPSILON = 1e-7  # of a pixel: a class that is neither there nor predicted costs nothing


@dataclass(frozen=True)
class MaskLoss:
    """The weighted sum that is trained: ce_weight x cross entropy (or focal) + dice_weight x Dice + ...

    `dice_classes` says over which classes Dice and Tversky are a mean: those present in the batch's masks, or all
    K. With `all`, a class that is not there costs its whole share however rarely it is predicted, without a
    gradient: near-perfect predictions of 3 of 19 classes cost 16 / 19.
    """

    pixel: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    ce_weight: float = 1.0
    dice_weight: float = 0.0
    dice_classes: Literal["present", "all"] = "present"
    lovasz_weight: float = 0.0
    tversky_weight: float = 0.0
    tversky_alpha: float = 0.3


class RegionSums(NamedTuple):
    """Over all pixels of a batch that are not ignored, each (K,): the probability of a class where it is, its
    probability everywhere, and the pixels where it is."""

    hits: Tensor
    predicted: Tensor
    wanted: Tensor


def resized(outputs: Tensor, height: int, width: int) -> Tensor:
    """(N, K, h', w') -> (N, K, height, width), bilinear between the centres of pixels (align_corners=False)."""
    if outputs.shape[2:] == (height, width):
        return outputs
    return F.interpolate(outputs, (height, width), mode="bilinear", align_corners=False)


def mask_objective(
    logits: Tensor,
    targets: Tensor,
    ignore: int,
    class_weights: Tensor | None,
    label_smoothing: float,
    loss: MaskLoss,
) -> tuple[Tensor, Tensor]:
    """(loss_sum, weight), both scalars on the device of `logits`, without a host sync.

    `logits` (N, K, h, w), `targets` (N, h, w) ids of any whole-number type, `class_weights` (K,) on the same device.
    `weight` is the number of valid pixels, or with class weights the sum of theirs, so that loss_sum / weight of one
    batch is the sum of `MaskLoss` with torch's (weighted) mean for cross entropy. A batch without a valid pixel
    has weight 0, loss 0 and gradients of 0.
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    labels = targets.long()
    valid = labels != ignore
    weights = None if class_weights is None or loss.ce_weight == 0 else class_weights.to(log_p.dtype)
    if weights is None:
        weight = valid.sum().to(log_p.dtype)
    else:
        weight = weight_of(labels, weights, ignore)
    loss_sum = torch.zeros((), dtype=log_p.dtype, device=log_p.device)
    if loss.ce_weight:
        pixels = cross_entropies(log_p, labels, ignore, weights, label_smoothing)
        if loss.pixel == "focal":
            pixels = pixels * focal_factors(log_p, labels, ignore, loss.focal_gamma, loss.focal_alpha)
        loss_sum = loss_sum + loss.ce_weight * pixels.sum()
    if loss.dice_weight or loss.tversky_weight or loss.lovasz_weight:
        loss_sum = loss_sum + weight * _of_batch(log_p.exp(), labels, ignore, loss)
    return loss_sum, weight


def mask_divergence(
    logits: Tensor, answers: Tensor, targets: Tensor, ignore: int, temperature: float
) -> Tensor:
    """`objectives.divergence` summed over the pixels that have a class:
    T^2 KL(softmax(answers / T) || softmax(logits / T)).

    `logits` and `answers` (N, K, ...) of any size are resized to the masks `targets` (N, h, w) first.
    """
    height, width = targets.shape[1:]
    exact = torch.promote_types(logits.dtype, torch.float32)
    ours, theirs = (
        (resized(each.to(exact), height, width) / temperature).log_softmax(dim=1)
        for each in (logits, answers)
    )
    pixels = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * torch.where(targets.long() != ignore, pixels, 0).sum()


def _of_batch(p: Tensor, labels: Tensor, ignore: int, loss: MaskLoss) -> Tensor:
    """The part of the sum that is one number per batch."""
    total = torch.zeros((), dtype=p.dtype, device=p.device)
    if loss.dice_weight or loss.tversky_weight:
        sums = region_sums(p, labels, ignore)
        if loss.dice_weight:
            total = total + loss.dice_weight * tversky(sums, 0.5, loss.dice_classes)
        if loss.tversky_weight:
            total = total + loss.tversky_weight * tversky(sums, loss.tversky_alpha, loss.dice_classes)
    if loss.lovasz_weight:
        total = total + loss.lovasz_weight * lovasz_softmax(p, labels, ignore)
    return total


def cross_entropies(
    log_p: Tensor, labels: Tensor, ignore: int, weights: Tensor | None, smoothing: float
) -> Tensor:
    """(N, h, w), 0 where ignored: the loss of each pixel as `objectives.cross_entropy` has it for each image.

    Pixel by pixel and summed later, because torch's own sum over a mask has no fixed order on CUDA.
    """
    losses = F.nll_loss(log_p, labels, weights, ignore_index=ignore, reduction="none")
    if smoothing == 0:
        return losses
    weighted = log_p if weights is None else log_p * weights.view(-1, 1, 1)
    spread = -weighted.mean(dim=1).masked_fill(labels == ignore, 0)
    return (1 - smoothing) * losses + smoothing * spread


def focal_factors(log_p: Tensor, labels: Tensor, ignore: int, gamma: float, alpha: float) -> Tensor:
    """(N, h, w): alpha (1 - p)^gamma of the pixel's own class (Lin et al. 2017, with a softmax).

    Gamma 0 and alpha 1 leave cross entropy as it is.
    """
    own = -F.nll_loss(log_p, labels, ignore_index=ignore, reduction="none")
    missing = -torch.expm1(own)
    # Below 1, the power has no slope at 0: a pixel that is surely right would make the gradient NaN.
    return alpha * missing.clamp_min(torch.finfo(missing.dtype).eps) ** gamma


def region_sums(p: Tensor, labels: Tensor, ignore: int) -> RegionSums:
    """`p` are probabilities (N, K, h, w), `labels` (N, h, w)."""
    valid = (labels != ignore).unsqueeze(1)
    truth = _truth(p, labels) & valid
    over = (0, 2, 3)
    hits = torch.where(truth, p, 0).sum(over)
    return RegionSums(hits, torch.where(valid, p, 0).sum(over), truth.sum(over).to(p.dtype))


def tversky(sums: RegionSums, alpha: float, classes: Literal["present", "all"]) -> Tensor:
    """1 - TP / (TP + alpha FP + (1 - alpha) FN) as a mean over classes (Salehi et al. 2017), with soft counts.

    Alpha .5 is Dice, 1 - 2 TP / (2 TP + FP + FN) (Milletari et al. 2016, without its squares); below it,
    missed pixels cost more than false ones. `present` without any class is 0.
    """
    hits, predicted, wanted = sums
    missed = alpha * (predicted - hits) + (1 - alpha) * (wanted - hits)
    costs = 1 - (hits + _EPSILON) / (hits + missed + _EPSILON)
    return costs.mean() if classes == "all" else _mean_present(costs, wanted)


def lovasz_softmax(p: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Lovasz-softmax over the batch (Berman et al. 2018, equations 8 and 11): mean over the classes present.

    The convex extension of 1 - IoU: with the errors of a class in falling order, each counts as much as the IoU falls
    when its pixel is the next wrong one. Of hard predictions it is 1 - IoU itself.
    """
    num_classes = p.shape[1]
    valid = (labels != ignore).flatten()
    truth = _truth(p, labels).transpose(0, 1).reshape(num_classes, -1) & valid
    own = p.transpose(0, 1).reshape(num_classes, -1)
    errors = torch.where(valid, (truth.to(p.dtype) - own).abs(), -1)  # what is ignored comes last
    errors, order = errors.sort(dim=1, descending=True)
    ranked = truth.gather(1, order)
    wanted = truth.sum(dim=1, keepdim=True)
    intersection = (wanted - ranked.cumsum(1, dtype=torch.int32)).to(p.dtype)
    union = (wanted + (~ranked).cumsum(1, dtype=torch.int32)).to(p.dtype)
    lost = 1 - intersection / union
    steps = lost.diff(dim=1, prepend=torch.zeros_like(lost[:, :1]))
    return _mean_present((errors.relu() * steps).sum(dim=1), wanted.squeeze(1))


def _truth(p: Tensor, labels: Tensor) -> Tensor:
    """bool (N, K, h, w): whether a pixel's id is that class."""
    return labels.unsqueeze(1) == torch.arange(p.shape[1], device=p.device).view(-1, 1, 1)


def _mean_present(costs: Tensor, wanted: Tensor) -> Tensor:
    """Mean of (K,) costs over the classes with pixels; 0 without any."""
    present = wanted > 0
    return torch.where(present, costs, 0).sum() / present.sum().clamp(min=1)
