"""Which places of an image speak for a class: Grad-CAM.

Shapes: N images, K classes, C channels, h x w places of a layer's map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from warmstart.analysis.explain.layers import Layer, Score, frozen, watched
from warmstart.models.build import BuiltModel
from warmstart.models.heads import is_pair


def grad_cam(module: nn.Module, layer: Layer, inputs: torch.Tensor, score: Score) -> torch.Tensor:
    """(N, h, w), not negative: ReLU(sum_k a_k A_k), where A_k is channel k of the layer's map, and a_k the mean over
    places of the score's gradient by it (Selvaraju et al. 2017, equations 1 and 2).

    `score` is (N,) of the outputs; the module is in evaluation mode, as it was restored.
    """
    with frozen(module), torch.enable_grad():
        with watched(module, [layer.path]) as outputs:
            total = score(module(inputs.detach().clone().requires_grad_().clone())).sum()
        activations = outputs[layer.path]
        (gradient,) = torch.autograd.grad(total, activations)
    maps, slopes = (layer.layout.to_map(tensor.detach()) for tensor in (activations, gradient))
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    return (weights * maps).sum(dim=1).relu()


def score_of(built: BuiltModel, number: int, pixels: torch.Tensor | None = None) -> Score:
    """What Grad-CAM follows for class `number`: its logit; of masks the sum of it over `pixels` (N, h, w), bool.

    A classifier with one row for two classes (heads.PairLinear) has a logit of 0 for the first: there it is the
    difference of both. Without `pixels` they are those that the model gives to the class (Vinogradova et al. 2020).
    """
    is_one = is_pair(built.module.get_submodule(built.head))

    def score(outputs: torch.Tensor) -> torch.Tensor:
        if not built.segments:
            return outputs[:, number] - (outputs[:, 1 - number] if is_one else 0)
        region = outputs.argmax(dim=1) == number if pixels is None else _resized(pixels, outputs)
        return (outputs[:, number] * region).sum(dim=(1, 2))

    return score


def _resized(pixels: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """The pixels in the size of the outputs; at least those of the places that hold some."""
    region = F.adaptive_max_pool2d(pixels.float().unsqueeze(1), outputs.shape[2:]).squeeze(1)
    return region.to(outputs.device) > 0
