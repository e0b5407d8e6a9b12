"""Adapters into a model, and out of the names and tensors of a state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.adapters.layers import DORA, add_adapter, low_rank, row_norms
from warmstart.records import Block, Lora

_NAME = re.compile(r"^(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude)$")
_BASES = ("weight", "in_proj_weight")  # what an adapter is added to


def adapted_layer(name: str) -> str | None:
    """The path of the layer whose adapter a parameter belongs to; None: it is of the base."""
    found = _NAME.match(name)
    return None if found is None else found[1]


def inject(
    module: nn.Module, blocks: tuple[Block, ...], lora: Lora, seed: int, head: str
) -> tuple[Block, ...]:
    """Give the layers at `lora.targets` adapters, in place. The blocks, each with its new parameters.

    UserError: a kind or a dropout that a layer cannot have.
    """
    for path in lora.targets:
        assert path != head, "the classifier trains whole"
        add_adapter(module.get_submodule(path), path, lora, seed)
    for path, part in module.named_modules():
        if isinstance(part, nn.TransformerEncoderLayer) and any(
            target.startswith(f"{path}.") for target in lora.targets
        ):
            part.register_forward_pre_hook(_nothing)
    owner = {name: number for number, block in enumerate(blocks) for name in block.parameters}
    added: list[list[str]] = [[] for _ in blocks]
    for name, _ in module.named_parameters():
        if (layer := adapted_layer(name)) is not None:
            number = next(owner[base] for key in _BASES if (base := f"{layer}.{key}") in owner)
            added[number].append(name)
    return tuple(
        replace(block, parameters=(*block.parameters, *names), adapters=tuple(names))
        for block, names in zip(blocks, added, strict=True)
    )


def _nothing(*_: object) -> None:
    """A hook that keeps torch's TransformerEncoderLayer, in evaluation, from computing past the layers in it."""


def without_adapters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the base's tensors, the adapters') of a state_dict, in its order."""
    adapters = {name: tensor for name, tensor in state.items() if adapted_layer(name) is not None}
    return {name: tensor for name, tensor in state.items() if name not in adapters}, adapters


def load_adapters(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of adapters into a module that has them. UserError: others than it has."""
    own = {name: p for name, p in module.named_parameters() if adapted_layer(name) is not None}
    other = list(own.keys() ^ tensors.keys())
    other += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if other:
        raise UserError(
            f"the adapters in {source} are not those that it describes: {listing(sorted(other), 3)}",
            "the tensors of the layers that its metadata name",
            "the file is damaged, or was changed by hand: take another checkpoint of the run",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def merged(state: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The state_dict of the plain model that computes the same to rounding: adapters added to the weights they adapt.

    Weights are summed in float32 or better, and keep their type and order.
    """
    plain, adapters = without_adapters(state)
    for path in dict.fromkeys(path for name in adapters if (path := adapted_layer(name)) is not None):
        key = next(base for name in _BASES if (base := f"{path}.{name}") in plain)
        weight = plain[key]
        kind = torch.promote_types(weight.dtype, torch.float32)
        a, b = (adapters[f"{path}.{name}.weight"].to(kind) for name in ("lora_A", "lora_B"))
        found = torch.add(weight.to(kind), low_rank(a, b, weight), alpha=lora.scale)
        if lora.kind == DORA:
            factor = adapters[f"{path}.lora_magnitude"].to(kind) / row_norms(found)
            found = found * factor.view(-1, *[1] * (found.ndim - 1))
        plain[key] = found.to(weight.dtype)
    return plain
