"""Channels that hang together, and a model without some of them.

Removing an output channel of a layer removes it from the norms behind it, from every layer that reads it, and from
every layer whose output is added to it (Fang et al. 2023, DepGraph, arXiv 2301.12900): one *group*. Its *units* are
what can be removed one by one: a channel, one of each group of a grouped convolution, or a head of an attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_SIZES = {  # attribute of a layer -> the sides whose channels it counts
    "out_features": ("out",),
    "in_features": ("in",),
    "out_channels": ("out", "both"),
    "in_channels": ("in", "both"),
    "num_features": ("both",),
    "num_channels": ("both",),
    "num_parameters": ("both",),
}


class Side(StrEnum):
    """Of what a member loses entries. `BOTH`: its outputs are its inputs (norms, depthwise convolutions)."""

    OUT = "out"
    IN = "in"
    BOTH = "both"
    PARAMETER = "parameter"  # `path` is that of a parameter, which has one dimension of more than one entry
    HEADS = "heads"  # `path` is that of an attention, whose settings count its heads


@dataclass(frozen=True)
class Member:
    """A layer in a group: `units[u]` are the indices, of its channels on this side, that go with unit u."""

    path: str
    side: Side
    units: tuple[tuple[int, ...], ...]

    def indices(self, units: Iterable[int]) -> list[int]:
        return sorted(index for unit in units for index in self.units[unit])


@dataclass(frozen=True)
class Group:
    """What loses its channels together; the first member is where they are made."""

    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        return self.members[0].path

    @property
    def num_units(self) -> int:
        return len(self.members[0].units)

    @property
    def made_by(self) -> tuple[str, ...]:
        """Paths of the layers whose outputs its channels are."""
        return tuple(m.path for m in self.members if m.side is Side.OUT)

    def feeds(self, path: str) -> bool:
        return any(m.path == path and m.side is Side.IN for m in self.members)


# The units that are to go, of each group.
Chosen = Sequence[frozenset[int]]


def remove(module: nn.Module, groups: Sequence[Group], chosen: Chosen) -> None:
    """Take the chosen units out of the module, in place. What is left of each tensor are its own numbers.

    A layer that loses channels on one side in several groups (behind a concatenation) loses them at once.
    """
    gone: dict[tuple[str, Side], set[int]] = {}
    for group, units in zip(groups, chosen, strict=True):
        for member in group.members if units else ():
            gone.setdefault((member.path, member.side), set()).update(member.indices(units))
    for (path, side), indices in gone.items():
        if side is Side.PARAMETER:
            _shorten_parameter(module, path, indices)
        elif side is Side.HEADS:
            _take_heads(module.get_submodule(path), len(indices))
        else:
            _shorten(module.get_submodule(path), side, indices)


def silence(module: nn.Module, groups: Sequence[Group], chosen: Chosen) -> None:
    """Make all weights that read the chosen units zero, in place: where no norm counts over channels, what is left then
    computes what the module without them computes."""
    for group, units in zip(groups, chosen, strict=True):
        for member in group.members:
            if member.side is Side.IN:
                layer = module.get_submodule(member.path)
                _silence(layer, member.indices(units))


def _silence(layer: nn.Module, inputs: list[int]) -> None:
    weight = layer.get_parameter("weight").data
    if isinstance(layer, _ConvTransposeNd):
        weight[inputs] = 0
    elif isinstance(layer, _ConvNd) and layer.groups > 1:
        per_group, rows = weight.shape[1], len(weight) // layer.groups
        for index in inputs:
            first = index // per_group * rows
            weight[first : first + rows, index % per_group] = 0
    else:
        weight[:, inputs] = 0


def long_dim(tensor: Tensor) -> int | None:
    """The one dimension with more than one entry; None: there is no such, or there are several."""
    dims = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    return dims[0] if len(dims) == 1 else None


def _without(tensor: Tensor, dim: int, gone: set[int]) -> Tensor:
    kept = [index for index in range(tensor.shape[dim]) if index not in gone]
    return (
        tensor.detach()
        .index_select(dim, torch.tensor(kept, dtype=torch.long, device=tensor.device))
        .contiguous()
    )


def _put(owner: nn.Module, name: str, dim: int, gone: set[int]) -> None:
    old = getattr(owner, name)
    new = _without(old, dim, gone)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new)


def _shorten_parameter(module: nn.Module, path: str, gone: set[int]) -> None:
    owner, _, name = path.rpartition(".")
    parameter = module.get_parameter(path)
    dim = long_dim(parameter)
    _put(module.get_submodule(owner), name, parameter.ndim - 1 if dim is None else dim, gone)


def _take_heads(attention: nn.Module, number: int) -> None:
    left = int(attention.num_heads) - number  # type: ignore[arg-type]
    if isinstance(getattr(attention, "attn_dim", None), int):
        attention.attn_dim = attention.attn_dim // attention.num_heads * left  # type: ignore[operator]
    attention.num_heads = left  # type: ignore[assignment]


def _shorten(layer: nn.Module, side: Side, gone: set[int]) -> None:
    groups = int(getattr(layer, "groups", 1))
    for name, dim in _dims(layer, side).items():
        if side is Side.IN and groups > 1:  # each group loses the same of its own inputs
            per_group = layer.get_parameter(name).shape[dim]
            _put(layer, name, dim, {index % per_group for index in gone})
        else:
            _put(layer, name, dim, gone)
    for attribute, sides in _SIZES.items():
        if side in sides and isinstance(getattr(layer, attribute, None), int):
            setattr(layer, attribute, getattr(layer, attribute) - len(gone))
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (layer.normalized_shape[0] - len(gone),)
    if isinstance(layer, _ConvNd) and side is Side.BOTH:
        layer.groups -= len(gone)


def _dims(layer: nn.Module, side: Side) -> Mapping[str, int]:
    """The tensors of a layer that have its channels on this side, and in which dimension."""
    out_dim = 1 if isinstance(layer, _ConvTransposeNd) and side is not Side.BOTH else 0
    if side is Side.IN:
        return {"weight": 1 - out_dim}
    vectors = ("bias", "running_mean", "running_var")
    own = {name: 0 for name in vectors if isinstance(getattr(layer, name, None), Tensor)}
    return own | ({"weight": out_dim} if isinstance(getattr(layer, "weight", None), Tensor) else {})
