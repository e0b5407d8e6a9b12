"""The margin of a margin head: in training an image must be closer to its class than to be right.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from warmstart.records import Margin


def with_margin(logits: Tensor, targets: Tensor, margin: Margin) -> Tensor:
    """The training logits (N, K) of a margin head, whose outputs are `logits` = eval_scale x cosine.

    `targets` are class indices (N,), or shares q of the classes (N, K) that add up to 1 (mixed images): a class
    with share q has the margin q m, so that an index is the share 1. With cosine c of the angle t,

        cosface: scale (c - q m)                             (Wang et al. 2018, equation 4)
        arcface: scale cos(t + q m)                          (Deng et al. 2019, equation 3)

    Where t + q m is beyond pi, cos would rise again; there it is scale (c - q m sin(q m)), as in ArcFace's own code.
    Classes without a share are scale x c.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cosines = exact / margin.eval_scale
    if targets.ndim == 1:
        shares = torch.zeros_like(cosines).scatter_(1, targets[:, None].long(), 1.0)
    else:
        shares = targets.to(cosines.dtype)
    angles = margin.margin * shares
    if margin.method == "cosface":
        return margin.scale * (cosines - angles)
    # The slope of the sine is infinite at a cosine of 1.
    sines = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    turned = cosines * angles.cos() - sines * angles.sin()
    beyond = cosines <= (math.pi - angles).cos()
    return margin.scale * torch.where(beyond, cosines - angles * angles.sin(), turned)
