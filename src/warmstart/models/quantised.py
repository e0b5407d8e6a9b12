"""Layers that compute as int8 arithmetic will, and train on: quantisation-aware training.

Jacob et al. 2018 (arXiv 1712.05877). Activations are uint8, asymmetric, one grid per tensor, whose range calibration
fixes. Weights are int8, symmetric, one scale per output channel, so a BatchNorm behind a convolution goes into the
scales without moving an integer: in evaluation a convolution computes both, as the integers will. Weights take `levels`
steps to each side: 63 (7 bits), since processors without VNNI add two products of 8 bits in 16, and saturate. Gradients
pass straight through inside a range, and are zero outside (Bengio et al. 2013, arXiv 1308.3432). A grid is (2,), scale
and zero point: a buffer, which checkpoints hold like any other. Shapes: E outputs, D inputs of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SAFE_LEVELS = 63
HIGHEST = 255  # of an activation
_LEAST_SCALE = 1e-12


class _Snap(torch.autograd.Function):
    """x / scale to the nearest whole number from `low` to `high` and back, all shifted by `zero`.

    torch.fake_quantize_per_tensor_affine does the same: on a CPU this is seven times as fast forward, and twice with
    the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        steps = (x / scale).round_().add_(zero)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def on_grid(x: Tensor, grid: Tensor) -> Tensor:
    """The nearest numbers that uint8 can stand for; in float32 at least, of the same shape."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    found: Tensor = _Snap.apply(x, grid[0], grid[1], 0, HIGHEST)
    return found


def grid_of(low: float, high: float) -> Tensor:
    """(scale, zero point) of a range, widened to hold 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / HIGHEST, _LEAST_SCALE)
    return torch.tensor([scale, round(-low / scale)])


def channel_scales(weight: Tensor, levels: int) -> Tensor:
    """(E,): the largest number of each output channel becomes `levels`."""
    return weight.detach().abs().flatten(1).amax(1).clamp_min(_LEAST_SCALE) / levels


def by_output(numbers: Tensor, like: Tensor) -> Tensor:
    """(E,) in a form that multiplies the outputs of a weight (E, ...)."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def weight_on_grids(weight: Tensor, levels: int) -> Tensor:
    """The weight, (E, ...), with each output channel on its own grid."""
    scales = by_output(channel_scales(weight, levels), weight)
    found: Tensor = _Snap.apply(weight, scales, torch.zeros((), device=weight.device), -levels, levels)
    return found


def folded(norm: nn.Module | None, bias: Tensor | None, scales: Tensor) -> tuple[Tensor, Tensor]:
    """(factor, bias), both (E,): factor * W x + bias is what the norm makes of W x + `bias` in evaluation."""
    bias = torch.zeros_like(scales) if bias is None else bias
    if norm is None:
        return torch.ones_like(scales), bias
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    shift = (bias - norm.running_mean) * factor
    return factor, shift if norm.bias is None else shift + norm.bias


class QuantisedConv2d(nn.Conv2d):
    """`output_grid` is None where the `norm` behind it has one, which is a child of another module."""

    input_grid: Tensor
    output_grid: Tensor | None
    levels: int
    norm: QuantisedBatchNorm2d | QuantisedBatchNormAct2d | None

    def forward(self, x: Tensor) -> Tensor:
        x, weight = on_grid(x, self.input_grid), weight_on_grids(self.weight, self.levels)
        if self.norm is not None and self.norm.training:
            return self._conv_forward(x, weight, self.bias)
        scales = channel_scales(self.weight, self.levels)
        factor, bias = folded(self.norm, self.bias, scales)
        units = (scales * factor * self.input_grid[0]).detach().abs().clamp_min(_LEAST_SCALE)
        bias = bias + ((bias / units).round() * units - bias).detach()  # an int32
        found = self._conv_forward(x, weight * by_output(factor, weight), bias)
        grid = self.output_grid if self.norm is None else self.norm.output_grid
        assert grid is not None, "one of the two has it"
        return on_grid(found, grid)


class QuantisedLinear(nn.Linear):
    """Its output is not quantised: integer products are scaled back to floats."""

    input_grid: Tensor
    levels: int

    def forward(self, x: Tensor) -> Tensor:
        weight = weight_on_grids(self.weight, self.levels)
        return functional.linear(on_grid(x, self.input_grid), weight, self.bias)


class QuantisedBatchNorm2d(nn.BatchNorm2d):
    """The norm behind a convolution: in evaluation that has computed it already."""

    output_grid: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return on_grid(super().forward(x), self.output_grid) if self.training else x


class QuantisedBatchNormAct2d(QuantisedBatchNorm2d):
    """timm's norm with an activation in it: quantised between the two."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.act(self.drop(super().forward(x)))
        return found


def has_activation(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNorm2d with an activation in it."""
    return isinstance(norm, nn.BatchNorm2d) and type(norm).__name__ == "BatchNormAct2d"


def is_norm(layer: nn.Module) -> bool:
    """Whether it is a norm that can be folded into the convolution before it."""
    return (type(layer) is nn.BatchNorm2d or has_activation(layer)) and bool(layer.track_running_stats)


def quantise(module: nn.Module, path: str, point: str, levels: int) -> None:
    """Make the layer at `path` a quantised one, in place, parameters untouched; its grids are to be set or loaded.

    `point` is the path of what has its output quantised: its own or its norm's; "" of a linear layer.
    Raises AttributeError or TypeError where the module has no such layers.
    """
    layer: Any = module.get_submodule(path)
    kind: type = type(layer)
    if kind is not (nn.Conv2d if point else nn.Linear):
        raise TypeError(f"{path} is a {kind.__name__}")
    norm: Any = None if point in ("", path) else module.get_submodule(point)
    if norm is not None and not is_norm(norm):
        raise TypeError(f"{point} is a {type(norm).__name__}")
    layer.__class__ = QuantisedConv2d if point else QuantisedLinear
    layer.levels = levels
    layer.register_buffer("input_grid", _new_grid(layer.weight))
    if point:
        layer.register_buffer("output_grid", _new_grid(layer.weight) if norm is None else None)
        layer.__dict__["norm"] = norm  # seen, and no child
    if norm is not None:
        norm.__class__ = QuantisedBatchNormAct2d if has_activation(norm) else QuantisedBatchNorm2d
        norm.register_buffer("output_grid", _new_grid(layer.weight))


def quantised_layers(module: nn.Module) -> dict[str, QuantisedConv2d | QuantisedLinear]:
    """By path, in the model's order."""
    kinds = (QuantisedConv2d, QuantisedLinear)
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, kinds)}


def _new_grid(like: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0]).to(like.device)
