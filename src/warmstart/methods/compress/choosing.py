"""Which units go, so that a share of a model's MACs is saved: ranked over all groups, or as many of each.

MACs are those of torch.utils.flop_counter, two operations each, of one image. A layer's MACs follow what is left of its
inputs and outputs; those of an attention's own products its heads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from warmstart.methods.compress.channels import Chosen, Group, Side
from warmstart.models.macs import counted

# Of one group at once: a layer that loses nearly all of its channels breaks what it is in.
MOST_OF_A_GROUP = 0.8
_HALVINGS = 40
# How much of a group goes at a level in [0, 1]: it grows with the level.
ShareOf = Callable[[Group, float], float]


class Costs:
    """MACs of a module by layer, and what is left of them without some units."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], example: Tensor) -> None:
        self.groups = groups
        self.macs = _own_macs(module, example)
        layers = {path: module.get_submodule(path) for path in self.macs if path}
        self._sizes: dict[tuple[str, Side], int] = {}
        for group in groups:
            for member in group.members:
                if (layer := layers.get(member.path)) is not None:
                    self._sizes[member.path, member.side] = _num_channels(layer, member.side)

    @property
    def total(self) -> float:
        return sum(self.macs.values())

    def left(self, chosen: Chosen) -> float:
        gone: dict[tuple[str, Side], int] = {}
        for group, units in zip(self.groups, chosen, strict=True):
            for member in group.members if units else ():
                key = member.path, member.side
                if key in self._sizes:
                    gone[key] = gone.get(key, 0) + sum(len(member.units[unit]) for unit in units)
        shares: dict[str, float] = {}
        for (path, side), number in gone.items():
            shares[path] = shares.get(path, 1.0) * (1 - number / self._sizes[path, side])
        return sum(macs * shares.get(path, 1.0) for path, macs in self.macs.items())


def _own_macs(module: nn.Module, example: Tensor) -> Mapping[str, float]:
    """Of each module without its children's, for one image."""
    counter, prefix = counted(module, example), type(module).__name__
    whole = {
        "" if path in (prefix, "Global") else path.removeprefix(f"{prefix}."): sum(counts.values()) / 2
        for path, counts in counter.get_flop_counts().items()
        if path == prefix or path.startswith(f"{prefix}.")
    }
    own = dict(whole)
    for path, macs in whole.items():
        if path:
            parent = path.rpartition(".")[0]
            while parent and parent not in whole:
                parent = parent.rpartition(".")[0]
            own[parent] = own.get(parent, 0.0) - macs
    return {path: macs for path, macs in own.items() if macs > 0}


def _num_channels(layer: nn.Module, side: Side) -> int:
    names = ("in_features", "in_channels") if side is Side.IN else ("out_features", "out_channels")
    for name in ("num_heads",) if side is Side.HEADS else names:
        if isinstance(getattr(layer, name, None), int):
            return int(getattr(layer, name))
    raise AssertionError(f"a {type(layer).__name__} without a number of channels has MACs of its own")


def lowest(groups: Sequence[Group], scores: Sequence[Tensor | None]) -> list[list[int]]:
    """The units of each group that may go, the least important first; equal ones in their order."""
    return [
        []
        if score is None
        else torch.argsort(score, stable=True).tolist()[
            : min(int(group.num_units * MOST_OF_A_GROUP), group.num_units - 1)
        ]
        for group, score in zip(groups, scores, strict=True)
    ]


def choose_global(
    groups: Sequence[Group], scores: Sequence[Tensor | None], left: Callable[[Chosen], float], wanted: float
) -> Chosen:
    """The least important units of all groups, so few that at most `wanted` is `left`; all that may go where that is
    not enough."""
    queue = sorted(
        (float(score[unit]), number, unit)
        for number, (units, score) in enumerate(zip(lowest(groups, scores), scores, strict=True))
        if score is not None
        for unit in units
    )

    def first(count: int) -> Chosen:
        chosen: list[set[int]] = [set() for _ in groups]
        for _, number, unit in queue[:count]:
            chosen[number].add(unit)
        return [frozenset(units) for units in chosen]

    return first(bisect_left(range(len(queue)), True, key=lambda count: left(first(count)) <= wanted))


def choose_each(
    groups: Sequence[Group],
    scores: Sequence[Tensor | None],
    left: Callable[[Chosen], float],
    wanted: float,
    share_of: ShareOf,
) -> Chosen:
    """The least important units of each group, `share_of(group, level)` of them, at the lowest level with which at most
    `wanted` is `left`."""
    ordered = lowest(groups, scores)

    def at(level: float) -> Chosen:
        return [
            frozenset(units[: round(group.num_units * share_of(group, level))])
            for group, units in zip(groups, ordered, strict=True)
        ]

    return at(lowest_level(lambda level: left(at(level)) <= wanted))


def lowest_level(holds: Callable[[float], bool]) -> float:
    """The lowest level in [0, 1] from which on it holds, by halving; 1 where it holds nowhere below."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def inputs_left(groups: Sequence[Group], head: str, chosen: Chosen) -> float:
    """How many inputs the classifier has, of those that the groups could take from it."""
    return sum(
        len(indices)
        for group, units in zip(groups, chosen, strict=True)
        for member in group.members
        if member.path == head and member.side is Side.IN
        for unit, indices in enumerate(member.units)
        if unit not in units
    )
