"""A model of quantised layers in the form that ONNX computes in integers: weights int8, biases int32, Q and DQ between.

Of every QuantisedConv2d or QuantisedLinear (models/quantised.py) the integers are those that it was trained with; the
norm behind a convolution is in their scales and in the bias. To the tracer the operators are ONNX's own; called by
itself, such a model computes the same in floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.models.quantised import (
    QuantisedBatchNorm2d,
    QuantisedBatchNormAct2d,
    QuantisedConv2d,
    QuantisedLinear,
    by_output,
    channel_scales,
    folded,
    on_grid,
    quantised_layers,
)
from warmstart.models.recipe import put

_MOST_BIAS = 2.0**30  # of what an int32 holds, half


def in_integers(module: nn.Module) -> None:
    """Change `module`, on the CPU and in evaluation mode, in place; one without quantised layers stays as it is."""
    for layer in quantised_layers(module).values():
        _settle(layer)
    norms = {path: part for path, part in module.named_modules() if isinstance(part, QuantisedBatchNorm2d)}
    for path, norm in norms.items():
        put(module, path, norm.act if isinstance(norm, QuantisedBatchNormAct2d) else nn.Identity())


@torch.no_grad()
def _settle(layer: QuantisedConv2d | QuantisedLinear) -> None:
    """Make of the layer, and of the norm behind it, one that computes with integers."""
    scales = channel_scales(layer.weight, layer.levels)
    integers = (layer.weight / by_output(scales, layer.weight)).round()
    given = layer.input_grid
    if isinstance(layer, QuantisedLinear):
        _, bias = folded(None, layer.bias, scales)
        _put_numbers(layer, integers=integers.T.contiguous().to(torch.int8), scales=scales, bias=bias)
        layer.__class__ = _IntegerLinear  # type: ignore[assignment]
    else:
        grid = layer.output_grid if layer.norm is None else layer.norm.output_grid
        assert grid is not None, "one of the two has it"
        factor, bias = folded(layer.norm, layer.bias, scales)
        plain = scales * factor.abs()
        # A channel that is next to nothing beside its bias gets a scale with which an int32 holds the bias.
        least = (bias.abs() / (_MOST_BIAS * given[0])).clamp_min(torch.finfo(torch.float32).tiny)
        scales = torch.maximum(plain, least)
        integers = (integers * by_output(factor.sign() * plain / scales, integers)).round().to(torch.int8)
        units = scales * given[0]
        whole = (bias.double() / units.double()).round().to(torch.int32)
        _put_numbers(layer, integers=integers, scales=scales, units=units, bias=whole)
        layer.made = _Activation(grid)
        layer.__class__ = _IntegerConv2d  # type: ignore[assignment]
    layer.given = _Activation(given)


def _put_numbers(layer: nn.Module, **tensors: Tensor) -> None:
    """In place of all that the layer was trained with."""
    layer._parameters.clear()
    layer._buffers.clear()
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)


class _IntegerConv2d(nn.Conv2d):
    """uint8 in, uint8 out, as floats between the layers; `units` are those of its bias."""

    integers: Tensor
    scales: Tensor
    units: Tensor
    given: nn.Module
    made: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        weight = _dequantised(self.integers, self.scales, 0)
        assert self.bias is not None, "an int32 one"
        bias = _dequantised(self.bias, self.units, 0)
        found: Tensor = self.made(self._conv_forward(self.given(x), weight, bias))
        return found


class _IntegerLinear(nn.Linear):
    """uint8 in, floats out; its integers are (D, E)."""

    integers: Tensor
    scales: Tensor
    given: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.given(x) @ _dequantised(self.integers, self.scales, 1)
        return found + self.bias


class _Activation(nn.Module):
    """A tensor to uint8 and back."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", grid[0].clone())
        self.register_buffer("zero", grid[1].to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            packed = _operator("QuantizeLinear", (x, self.scale, self.zero), torch.uint8, x)
            return _operator("DequantizeLinear", (packed, self.scale, self.zero), torch.float32, x)
        return on_grid(x, torch.stack([self.scale, self.zero.float()]))


def _dequantised(integers: Tensor, scales: Tensor, axis: int) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        given = (integers, scales, torch.zeros_like(scales, dtype=integers.dtype))
        return _operator("DequantizeLinear", given, torch.float32, integers, axis=axis)
    shape = [1] * integers.ndim
    shape[axis] = -1
    return integers * scales.view(shape)


def _operator(
    name: str, given: Sequence[Tensor], dtype: torch.dtype, like: Tensor, **attributes: Any
) -> Tensor:
    return torch.onnx.ops.symbolic(name, given, attributes, dtype=dtype, shape=like.shape)
