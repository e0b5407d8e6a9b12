"""Margin heads: a classifier by angle, and which one a run has.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.config.schema import TaskConfig
from warmstart.errors import UserError
from warmstart.records import Margin

# Those of document 001's code. The papers have a scale of 64 and margins of .35 and .5, for 10,000 faces and more.
DEFAULTS = {"cosface": Margin("cosface", 0.18, 12.0, 6.0), "arcface": Margin("arcface", 0.2, 8.0, 4.0)}


class CosineClassifier(nn.Module):
    """Logits: `margin.eval_scale` times the cosine between an embedding (N, D) and the weight of each class (K, D).

    It is one function, in training and in evaluation. The margin needs the targets, so it is the objective's
    (tasks/margin.py). Cosines are computed in float32 at least: bfloat16 has three digits of them.
    """

    def __init__(self, in_features: int, out_features: int, margin: Margin) -> None:
        super().__init__()
        self.in_features, self.out_features, self.margin = in_features, out_features, margin
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias: None = None
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(embeddings.dtype, torch.float32)
            weight = F.normalize(self.weight.to(dtype), dim=-1)
            return self.margin.eval_scale * F.linear(F.normalize(embeddings.to(dtype), dim=-1), weight)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.margin}"


def resolve_margin(settings: TaskConfig, own: Margin | None) -> Margin | None:
    """The margin head asked for; `own` is that of the weights, which `auto` keeps. None: a linear classifier.

    Values that are not given are those of the weights' own head if the method is the same, else the method's default.
    UserError: values for a head that there is not.
    """
    given = settings.margin, settings.margin_scale, settings.margin_eval_scale
    method: str = settings.margin_method
    if method == "auto":
        method = "none" if own is None else own.method
    if method == "none":
        if settings.margin_method == "auto" and any(
            value is not None for value in (*given, settings.margin_ramp)
        ):
            raise UserError(
                "--margin, --margin-scale, --margin-eval-scale or --margin-ramp is given, and the weights have no"
                " margin head",
                "a margin head to apply it to",
                "--margin-method cosface (or arcface), or leave it out",
            )
        return None
    start = own if own is not None and own.method == method else DEFAULTS[method]
    own_values = start.margin, start.scale, start.eval_scale
    return Margin(
        method, *(own if value is None else value for own, value in zip(own_values, given, strict=True))
    )


def named(margin: Margin | None) -> str:
    """A kind of classifier in words."""
    return "a linear classifier" if margin is None else f"a {margin.method} head"
