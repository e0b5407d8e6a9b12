"""Which places of an image the classifier's tokens attended to: attention rollout.

Shapes: N images, T tokens, h x w places.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from warmstart.analysis.explain.layers import Layer
from warmstart.errors import UserError

_SOFTMAX = (torch.softmax, torch.Tensor.softmax, F.softmax)
_AXES = 4  # of attention: images, heads, tokens that ask, tokens that are asked


class AttentionWeights(TorchFunctionMode):
    """While it lasts, every attention that is computed, (N, heads, T, T), in order, whoever's code it is.

    What torch hides in one call (`scaled_dot_product_attention`, `multi_head_attention_forward`) is computed as it
    defines it; else an attention is a softmax with four axes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward:
            asked: dict[str, Any] = {**kwargs, "need_weights": True, "average_attn_weights": False}
            both: tuple[torch.Tensor, torch.Tensor] = function(*args, **asked)  # type: ignore[assignment]
            self.found.append(both[1])
            return both
        result = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self.found.append(_weights(*args, **kwargs))
        elif function in _SOFTMAX and result.ndim == _AXES:
            self.found.append(result)
        return result


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """softmax(q k^T scale + mask), as torch's documentation of the function has it."""
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None:
        hides = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if hides else scores + attn_mask
    return scores.softmax(dim=-1)


def rollout(module: nn.Module, layer: Layer, inputs: torch.Tensor, name: str) -> torch.Tensor:
    """(N, h, w): how much of each place has reached the tokens that the classifier looks at, over all layers
    (Abnar & Zuidema 2020): the product of (A + 1) / 2, A the mean of a layer's heads.

    It knows of no class. A last attention that pools (one token asks) comes on top of it.

    Raises:
        UserError: `name` has no attention between all places: a convolutional net, or windows and stages.
    """
    with torch.no_grad():
        module(inputs)  # what is computed once for all images, like the texts of classes, is then done
        with AttentionWeights() as attention:
            module(inputs)
    num_tokens = layer.layout.prefix + layer.layout.num_places
    whole = [a for a in attention.found if a.shape[-2:] == (num_tokens, num_tokens) and len(a) == len(inputs)]
    pools = [a for a in attention.found if a.shape[-2:] == (1, num_tokens) and len(a) == len(inputs)]
    if layer.layout.kind != "tokens" or not whole or len(whole) + len(pools) < len(attention.found):
        what = (
            "no attention" if not attention.found else "attention that is not between all places of the image"
        )
        raise UserError(
            f"rollout: {name} has {what}" + (" (windows, stages or channels)" if attention.found else ""),
            "a plain vision transformer (ViT, DeiT, DINOv2, CLIP)",
            "--method grad-cam",
        )
    mixed = torch.eye(num_tokens, device=inputs.device, dtype=whole[0].dtype).expand(len(inputs), -1, -1)
    for weights in whole:
        mixed = (weights.mean(dim=1) @ mixed + mixed) / 2
    if pools:
        rows = pools[-1].mean(dim=1) @ mixed
    else:
        asked = torch.ones(num_tokens, dtype=torch.bool) if layer.answering is None else layer.answering
        rows = mixed[:, asked.to(mixed.device)]
    places = rows.mean(dim=1)[:, layer.layout.prefix :]
    return places.reshape(len(inputs), layer.layout.height, layer.layout.width)
