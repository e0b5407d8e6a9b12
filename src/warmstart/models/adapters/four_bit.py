"""Adapted linear layers whose own weight is kept in 4 bits: nf4 with double quantisation (QLoRA, Dettmers et al. 2023).

The one door to bitsandbytes, an optional extra. Codes and statistics are buffers with names of their own, so that
checkpoints, hashes and copies hold them like any other tensor. Shapes: E outputs, D inputs; a weight (E, D) is cut into
B = ceil(E D / 64) runs of 64 numbers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.adapters.layers import LoraLinear
from warmstart.models.sizes import first_line
from warmstart.records import Block, Lora

_RUN, _SCALES_TOGETHER = 64, 256  # numbers that share a scale; scales that share one of their own
_LEAST = 4096  # numbers: below that, 4 bits save less than they cost (bitsandbytes' own limit for its 8-bit states)
# What stands for a weight, after the path of its layer: the codes, two in a byte; the runs' scales, in 8 bits; what
# these are multiplied by and added to; sha256 of the weight's bytes before; ||W - W'|| / ||W||.
_CODES, _SCALES, _SCALE2, _OFFSET = ".weight_codes", ".weight_scales", ".weight_scale2", ".weight_offset"
_DIGEST, _ERROR = ".weight_sha256", ".weight_error"
_PARTS = (_CODES, _SCALES, _SCALE2, _OFFSET, _DIGEST, _ERROR)
# On some processors it looks for a kernel of arithmetic that is not used here, and complains.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
_TABLES: dict[torch.device, Tensor] = {}  # the 256 numbers that the scales' codes stand for
_DEVICES = ("cpu", "cuda")


class LoraFourBitLinear(LoraLinear):
    """An adapted linear layer, (..., D) -> (..., E), with a weight of nf4 codes.

    Nothing is kept in floating point: the backward pass dequantises again. `weight` is made anew at every look.
    """

    weight_codes: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return dequantised(self._stored())

    def base_map(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # bitsandbytes' operators know nothing of it
            x = x.to(torch.get_autocast_dtype(x.device.type))
        mapped: Tensor = _import().matmul_4bit(x, self.weight_codes.view(-1, 1), _state(self._stored()))
        return mapped

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.base_map(x)
        # Beside the product: bitsandbytes' own bias has a wrong gradient for more than one axis of rows.
        return self.adapted(x, mapped if self.bias is None else mapped + self.bias.to(mapped.dtype))

    def _stored(self) -> dict[str, Tensor]:
        return {part: getattr(self, part[1:]) for part in _PARTS}


def put_in_four_bits(
    module: nn.Module, blocks: tuple[Block, ...], lora: Lora, stored: Mapping[str, Tensor] | None = None
) -> tuple[tuple[Block, ...], str]:
    """Keep the weights of adapted linear layers in 4 bits, in place. The blocks, and in words what became of them.

    `stored` is a state_dict that holds such weights already: its codes are taken as they are.

    Raises:
        UserError: no adapted layer whose weight can be kept in 4 bits; bitsandbytes is not there.
    """
    reasons = {path: _why_not(module.get_submodule(path)) for path in lora.targets}
    paths = [path for path, why in reasons.items() if why is None]
    left = [f"{path} {why}" for path, why in reasons.items() if why is not None]
    if not paths:
        raise UserError(
            f"--lora.bits 4: no adapted layer can be kept in 4 bits: {listing(left, 3)}",
            f"linear layers of {_LEAST:,} weights or more, and an even number of inputs, among --lora.targets",
            "--lora.targets all-linear, or leave --lora.bits out",
        )
    before = sum(module.get_submodule(path).get_parameter("weight").nbytes for path in paths)
    for path in paths:
        layer = module.get_submodule(path)
        weight = layer.get_parameter("weight")
        parts = {part: stored[path + part] for part in _PARTS} if stored else quantised(weight)
        del layer._parameters["weight"]
        for part, tensor in parts.items():
            layer.register_buffer(part[1:], tensor.to(weight.device))
        layer.__class__ = LoraFourBitLinear
    layers = four_bit_layers(module)
    after = sum(tensor.nbytes for layer in layers.values() for tensor in layer._stored().values())
    errors = quantisation_errors(module.state_dict())
    worst = max(errors, key=lambda path: errors[path])
    told = (
        f"{len(paths)} layers in 4 bits (nf4, double quantisation): {before / 1e6:.1f} -> {after / 1e6:.1f} MB; "
        f"relative error of weights {sum(errors.values()) / len(errors):.3f}, largest {errors[worst]:.3f} ({worst})"
    )
    told += f"; as they were: {listing(left, 3)}" if left else ""
    return _with_buffers(blocks, {path: 2 * layers[path].weight_codes.numel() for path in paths}), told


def _with_buffers(blocks: tuple[Block, ...], paths: Mapping[str, int]) -> tuple[Block, ...]:
    """The blocks, in which buffers stand for the weights of layers: path -> how many these are."""
    sizes = {f"{path}.weight": num for path, num in paths.items()}
    parts = {f"{path}.weight": tuple(path + part for part in _PARTS) for path in paths}
    return tuple(
        replace(
            block,
            parameters=tuple(name for name in block.parameters if name not in parts),
            buffers=(*block.buffers, *(n for name in block.parameters for n in parts.get(name, ()))),
            num_four_bit=sum(sizes[name] for name in block.parameters if name in parts),
        )
        for block in blocks
    )


def _why_not(layer: nn.Module) -> str | None:
    """Why an adapted layer keeps its weight in floating point, in words that follow its name."""
    if type(layer) is not LoraLinear:
        return f"is a {type(layer).__name__.removeprefix('Lora')}"
    weight = layer.get_parameter("weight")
    return None if _fits(weight) else f"has a weight of {weight.shape[0]} x {weight.shape[1]}"


def _fits(weight: Tensor) -> bool:
    """Whether it is that of a linear layer, of pairs of inputs, and large enough."""
    return weight.ndim == 2 and weight.shape[1] % 2 == 0 and weight.numel() >= _LEAST


def four_bit_layers(module: nn.Module) -> dict[str, LoraFourBitLinear]:
    """By path, in the model's order."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraFourBitLinear)}


def check_four_bit(device: torch.device) -> None:
    """Raises UserError, with the reason, where this machine cannot compute with 4-bit weights."""
    _import()
    if device.type not in _DEVICES:
        raise UserError(
            f"--lora.bits 4 on {device.type}: its 4-bit arithmetic was never tried",
            f"--device {' or '.join(_DEVICES)}",
            "leave --lora.bits out: LoRA itself runs on every device",
        )


def stored_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Paths of the layers whose weights a state_dict holds in 4 bits."""
    return [name.removesuffix(_CODES) for name in state if name.endswith(_CODES)]


def without_codes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the other tensors of a state_dict, what stands in it for weights in 4 bits)."""
    names = {path + part for path in stored_layers(state) for part in _PARTS}
    codes = {name: tensor for name, tensor in state.items() if name in names}
    return {name: tensor for name, tensor in state.items() if name not in names}, codes


def in_floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with PATH.weight, float32 (E, D), in the place of what stands for it in 4 bits."""
    plain, codes = without_codes(state)
    stored = {path: {part: codes[path + part] for part in _PARTS} for path in stored_layers(codes)}
    return plain | {f"{path}.weight": dequantised(parts) for path, parts in stored.items()}


def in_four_bits(state: Mapping[str, Tensor], paths: Iterable[str]) -> dict[str, Tensor]:
    """The state with PATH.weight in 4 bits."""
    names = {f"{path}.weight": path for path in paths}
    found = {name: tensor for name, tensor in state.items() if name not in names}
    for name, path in names.items():
        found |= {path + part: tensor for part, tensor in quantised(state[name]).items()}
    return found


def told_of_codes(codes: Mapping[str, Tensor]) -> list[str]:
    """A note on a file with weights in 4 bits."""
    num = len(stored_layers(codes))
    return [f"{num} layers are stored in 4 bits (nf4): their weights are dequantised"] if num else []


def fitting_layers(state: Mapping[str, Tensor], targets: Iterable[str]) -> list[str]:
    """Those of the adapted layers whose weights, in floating point here, can be kept in 4 bits."""
    weights = {path: state.get(f"{path}.weight") for path in targets}
    return [path for path, weight in weights.items() if weight is not None and _fits(weight)]


def facts_before(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and sha256 of each PATH.weight before it was put into 4 bits."""
    return {
        f"{path}.weight": (_shape(state[path + _CODES]), bytes(state[path + _DIGEST].tolist()).hex())
        for path in stored_layers(state)
    }


def quantisation_errors(state: Mapping[str, Tensor]) -> dict[str, float]:
    """||W - W'|| / ||W|| by layer, as measured when its weight was put into 4 bits."""
    return {path: float(state[path + _ERROR]) for path in stored_layers(state)}


@torch.no_grad()
def quantised(weight: Tensor) -> dict[str, Tensor]:
    """What stands for a weight, float (E, D), by the ends of the names."""
    plain = weight.detach().float().contiguous()
    codes, made = _import().functional.quantize_4bit(
        plain, blocksize=_RUN, compress_statistics=True, quant_type="nf4"
    )
    assert made.state2.blocksize == _SCALES_TOGETHER, "bitsandbytes cuts scales into other runs"
    stored = {
        _CODES: codes.view(len(plain), -1),
        _SCALES: made.absmax,
        _SCALE2: made.state2.absmax,
        _OFFSET: made.offset,
    }
    digest = torch.tensor(list(sha256_of(plain)), dtype=torch.uint8)
    error = torch.tensor(relative_error(dequantised(stored), plain))
    return stored | {_DIGEST: digest, _ERROR: error}


def dequantised(stored: Mapping[str, Tensor]) -> Tensor:
    """The weight, float32 (E, D), that 4-bit codes stand for."""
    weight: Tensor = _import().functional.dequantize_4bit(stored[_CODES].view(-1, 1), _state(stored))
    return weight


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64."""
    least = torch.finfo(torch.float64).tiny
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=least))


def sha256_of(tensor: Tensor) -> bytes:
    """Of its numbers in the order of its axes, as they lie in memory."""
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().tobytes()).digest()


def _shape(codes: Tensor) -> tuple[int, int]:
    return codes.shape[0], 2 * codes.shape[1]


def _state(stored: Mapping[str, Tensor]) -> Any:
    """bitsandbytes' own record of how codes are to be read; it copies nothing."""
    made = _import().functional.QuantState
    codes = stored[_CODES]
    if codes.device not in _TABLES:
        _TABLES[codes.device] = _import().functional.create_dynamic_map().to(codes.device)
    scale2 = made(
        absmax=stored[_SCALE2],
        blocksize=_SCALES_TOGETHER,
        code=_TABLES[codes.device],
        dtype=torch.float32,
    )
    return made(
        absmax=stored[_SCALES],
        shape=torch.Size(_shape(codes)),
        blocksize=_RUN,
        quant_type="nf4",
        dtype=torch.float32,
        offset=stored[_OFFSET],
        state2=scale2,
    )


def _import() -> Any:
    """The package bitsandbytes, or a UserError that says how to get it."""
    try:
        import bitsandbytes
    except Exception as error:  # its native library may fail in any way where a driver does not fit
        is_there = find_spec("bitsandbytes") is not None
        raise UserError(
            f"4-bit weights need bitsandbytes ({first_line(error)})",
            "the package, an optional extra" + (", with a library for this machine" if is_there else ""),
            "look at `python -m bitsandbytes`" if is_there else "pip install 'warmstart[qlora]'",
        ) from error
    return bitsandbytes
