"""Layers with low-rank adapters: a layer keeps its weights under their own names, and A and B stand beside them.

Hu et al. 2021 (arXiv 2106.09685): W x + s B A x, where B is zero at first; s = alpha / r. Kalajdzievski 2023 (rslora,
arXiv 2312.03732): s = alpha / sqrt(r). Liu et al. 2024 (DoRA, arXiv 2402.09353, equation 5): m / |V| V x with V = W +
s B A, each norm that of a row, and constant in the gradient. Shapes of A, B and m and their first numbers are those of
peft. Shapes: r rank, D inputs, E outputs of a layer, k x k a kernel.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from warmstart.errors import UserError
from warmstart.records import Lora

DORA = "dora"


def low_rank(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """B A in the form of the weight that it is added to: (E, D), or (E, D, k, k) of a convolution."""
    return (b.flatten(1) @ a.flatten(1)).view(weight.shape)


def row_norms(weight: Tensor) -> Tensor:
    """The norm of what makes each output: (E,), or (1, E, 1, 1) of a convolution."""
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms if weight.ndim == 2 else norms.view(1, -1, *[1] * (weight.ndim - 2))


class _Adapter(nn.Module, ABC):
    """What every adapted layer has beside its own weights."""

    weight: Tensor
    bias: Any  # a tensor, or None
    lora_A: nn.Module
    lora_B: nn.Module
    lora_magnitude: nn.Parameter | None  # of DoRA
    lora_scale: float
    lora_dropout: float

    def base_weight(self) -> Tensor:
        """W as numbers that one can calculate with."""
        return self.weight

    @abstractmethod
    def base_map(self, x: Tensor) -> Tensor:
        """W x, without the bias."""

    def adapted(self, x: Tensor, result: Tensor) -> Tensor:
        """What the layer gives where its base gives `result` for `x`."""
        is_dropping = self.training and self.lora_dropout > 0
        dropped = functional.dropout(x, self.lora_dropout) if is_dropping else x
        update = self.lora_B(self.lora_A(dropped))
        if self.lora_magnitude is None:
            return torch.add(result, update, alpha=self.lora_scale)
        weight = self.base_weight()
        with torch.no_grad():
            delta = low_rank(self.lora_A.weight, self.lora_B.weight, weight)  # type: ignore[arg-type]
            norms = row_norms(weight + self.lora_scale * delta)
        factor = self.lora_magnitude / norms
        if is_dropping:
            mapped = self.base_map(dropped)
        else:
            mapped = result if self.bias is None else result - self.bias.view(norms.shape)
        return result + (factor - 1) * mapped + factor * update * self.lora_scale


class LoraLinear(_Adapter, nn.Linear):
    """A linear layer; A is (r, D) and B (E, r)."""

    def base_map(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.base_weight())

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, super().forward(x))


class LoraConv2d(_Adapter, nn.Conv2d):
    """A convolution without groups; A is (r, D, k, k), in the layer's own stride and padding, and B (E, r, 1, 1)."""

    def base_map(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.base_weight(), None)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, super().forward(x))


class _MergedWeight(nn.Module):
    """A layer whose weight others compute with: whoever reads it gets W + s B A."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    lora_scale: float
    _at_hand: Tensor | None = None  # while it is needed several times

    def merged(self, name: str) -> Tensor:
        weight = self._parameters[name]
        assert weight is not None, "an adapted weight"
        if self._at_hand is not None:
            return self._at_hand
        return torch.add(
            weight, low_rank(self.lora_A.weight, self.lora_B.weight, weight), alpha=self.lora_scale
        )


class LoraProjection(_MergedWeight, nn.Linear):
    """The output projection of an attention, whose weight the attention computes with by itself."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.merged("weight")


class LoraAttention(_MergedWeight, nn.MultiheadAttention):
    """torch's attention, with adapters of its input projections, A (r, D) and B (3 D, r), and of its `out_proj`.

    Its own code never calls these as layers, and a TransformerEncoderLayer in a hurry not even this one. So the weights
    that both of them read are the merged ones.
    """

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        return self.merged("in_proj_weight")

    def forward(self, *arguments: Any, **settings: Any) -> tuple[Tensor, Tensor | None]:
        projection = self.out_proj
        assert isinstance(projection, LoraProjection), "both are adapted together"
        self._at_hand, projection._at_hand = self.in_proj_weight, projection.weight
        try:
            return super().forward(*arguments, **settings)
        finally:
            self._at_hand = projection._at_hand = None


def refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot have an adapter, in words that follow its name; None: it can."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"is a convolution of {layer.groups} groups, whose low-rank update would not be one of its own weights"
    if type(layer) is NonDynamicallyQuantizableLinear:
        return (
            "is never called: its attention computes with its weight; name the attention, which adapts it too"
        )
    if type(layer) is nn.MultiheadAttention:
        return None if layer._qkv_same_embed_dim else "is attention over keys or values of another width"
    if type(layer) in (nn.Linear, nn.Conv2d):
        return None
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    if isinstance(layer, kinds):
        return f"is a {type(layer).__name__}, which computes with its weight in its own way"
    return f"is a {type(layer).__name__}"


def weight_name(layer: nn.Module) -> str:
    """Of the parameter that an adapter is added to."""
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


def widest_rank(layer: nn.Module) -> int:
    """Above it, A and B would have more numbers than a matrix of full rank needs."""
    weight = layer.get_parameter(weight_name(layer))
    return min(len(weight), weight[0].numel())


def add_adapter(layer: nn.Module, path: str, lora: Lora, seed: int) -> None:
    """Make `layer` (at `path` of its model) one with an adapter, in place: its parameters stay the very same objects.

    A is drawn uniformly from +-1/sqrt(inputs) (He et al. 2015 with a = sqrt 5, as of nn.Linear), by `seed` and path
    alone.
    UserError: a kind or a dropout that this layer cannot have.
    """
    assert refusal(layer) is None, f"{path} {refusal(layer)}"
    if isinstance(layer, nn.MultiheadAttention):
        _check_attention(path, lora)
        _put(layer, path, lora, seed)
        _put(layer.out_proj, f"{path}.out_proj", lora, seed)
        layer.out_proj.__class__ = LoraProjection  # type: ignore[assignment]
        layer.__class__ = LoraAttention
        return
    _put(layer, path, lora, seed)
    layer.lora_dropout = lora.dropout  # type: ignore[assignment]
    layer.lora_magnitude = None  # type: ignore[assignment]
    if lora.kind == DORA:
        layer.lora_magnitude = nn.Parameter(row_norms(layer.get_parameter("weight").detach()))
    layer.__class__ = LoraLinear if isinstance(layer, nn.Linear) else LoraConv2d


def _check_attention(path: str, lora: Lora) -> None:
    for setting, is_given in (("kind dora", lora.kind == DORA), ("dropout", lora.dropout > 0)):
        if is_given:
            raise UserError(
                f"--lora.{setting}: {path} is an nn.MultiheadAttention, whose adapters are merged into the weights "
                "that it computes with",
                "--lora.kind lora or rslora, and no --lora.dropout",
                "--lora.targets names layers of other kinds",
            )


def _put(layer: nn.Module, path: str, lora: Lora, seed: int) -> None:
    """A and B, beside the layer's own weight, on its device and in its arithmetic."""
    weight, name = layer.get_parameter(weight_name(layer)), weight_name(layer)
    with torch.device("meta"):  # built without touching the global generator
        if isinstance(layer, nn.Conv2d):
            form = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode")}
            down: nn.Module = nn.Conv2d(layer.in_channels, lora.rank, layer.kernel_size, bias=False, **form)  # type: ignore[arg-type]
            up: nn.Module = nn.Conv2d(lora.rank, layer.out_channels, 1, bias=False)
        else:
            down = nn.Linear(weight.shape[1], lora.rank, bias=False)
            up = nn.Linear(lora.rank, weight.shape[0], bias=False)
    digest = hashlib.sha256(f"{seed} {path}.{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(weight[0].numel())
    for part in (down, up):
        part.to_empty(device="cpu").to(weight.dtype).train(layer.training)
    with torch.no_grad():
        down.get_parameter("weight").uniform_(-bound, bound, generator=generator)
        up.get_parameter("weight").zero_()
    layer.lora_A, layer.lora_B = down.to(weight.device), up.to(weight.device)
    layer.lora_scale = lora.scale  # type: ignore[assignment]
