"""The one door to Torch-Pruning: which channels of a model hang together (MIT licence; only its dependency graph).

It traces a forward pass by its gradients. What it finds becomes plain records, so that ranking, removing and loading a
pruned model need no library. What cannot be told apart safely is left whole: channels that a model gives out, the
residual stream of attentions, and tables that are added to it.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from warmstart.errors import UserError
from warmstart.methods.compress.attention import find_attentions, head_groups
from warmstart.methods.compress.channels import (
    NORMS,
    Chosen,
    Group,
    Member,
    Side,
    long_dim,
    remove,
    silence,
)

_CHANNEL_LAYERS = (_ConvNd, nn.Linear, nn.PReLU, *NORMS)


def find_groups(module: nn.Module, example: Tensor, head: str, name: str) -> tuple[Group, ...]:
    """All groups of the module, in the order of its layers; `head` is the path of its classifier, which gives as many
    outputs as before. `example` (1, C, H, W) is an input; `name` the model's name.

    Raises:
        UserError: Torch-Pruning is not installed, cannot follow the model, or finds nothing that can be removed.
    """
    traced = copy.deepcopy(module).eval().requires_grad_(True)
    names = {layer: path for path, layer in traced.named_modules()}
    names |= {parameter: path for path, parameter in traced.named_parameters()}
    found = []
    taken: set[tuple[str, Side, int]] = set()
    for raw in _raw_groups(traced, example, traced.get_submodule(head), name):
        group = _translated(raw, names, traced)
        if group is None or any(len(set(map(len, member.units))) > 1 for member in group.members):
            continue  # of slices, where units differ in what they have of a layer
        own = [(m.path, m.side, index) for m in group.members for unit in m.units for index in unit]
        if len(set(own)) == len(own) and not taken.intersection(
            own
        ):  # a channel of two units is not understood
            found.append(group)
            taken.update(own)
    order = {path: number for number, path in enumerate(dict(traced.named_modules()))}
    order |= {path: number for number, path in enumerate(dict(traced.named_parameters()))}
    named = [
        Group(tuple(sorted(group.members, key=lambda m: (m.side is not Side.OUT, order[m.path]))))
        for group in (*found, *head_groups(traced))
    ]
    groups = sorted(named, key=lambda group: order[group.name])
    groups = _proven(traced, groups, example)
    if not groups:
        raise UserError(
            f"{name} has no channels that can be taken out: all of them are tied to its outputs, or to operations that "
            "cannot be followed",
            "a convolutional network, or a transformer with an MLP of linear layers",
            "--method factorise, sparse or int8 need no channels to go",
        )
    return tuple(groups)


def pruned(
    module: nn.Module, groups: Sequence[Group], chosen: Chosen, example: Tensor, name: str
) -> nn.Module:
    """A copy of the module without the chosen units, which has run.

    Raises:
        UserError: it does not run any more, or its outputs have another shape or are not finite.
    """
    smaller = copy.deepcopy(module)
    remove(smaller, groups, chosen)
    with torch.inference_mode():
        before = module(example)
        try:
            after = smaller(example)
        except (RuntimeError, ValueError, IndexError) as error:
            raise _refusal(name, error) from error
    if after.shape != before.shape:
        raise _refusal(name, f"outputs of {tuple(after.shape)} in place of {tuple(before.shape)}")
    if not torch.isfinite(after).all() and torch.isfinite(before).all():
        raise _refusal(name, "outputs that are not finite")
    return smaller


def _proven(module: nn.Module, groups: list[Group], example: Tensor) -> list[Group]:
    """Those groups whose units can go: without some of them, the module computes what it computes where their readers
    read zeros. Together first; where that fails, one after the other."""
    if not groups or _is_sound(module, groups, example):
        return groups
    sound: list[Group] = []
    for group in groups:
        if _is_sound(module, [*sound, group], example):
            sound.append(group)
    return sound


def _is_sound(module: nn.Module, groups: list[Group], example: Tensor) -> bool:
    chance = random.Random(0)  # without any pattern: channels of two halves may be confused with each other
    drawn = [frozenset(chance.sample(range(n := group.num_units), n // 2)) for group in groups]
    counting = [any(_counts(module, member) for member in group.members) for group in groups]
    none = frozenset[int]()
    exact = [none if counts else units for units, counts in zip(drawn, counting, strict=True)]
    for chosen, is_exact in ((exact, True), (drawn, False)):
        if is_exact and not any(chosen):
            continue
        smaller, silent = copy.deepcopy(module), copy.deepcopy(module)
        try:
            remove(smaller, groups, chosen)
            silence(silent, groups, chosen)
            with torch.no_grad():
                found, wanted = smaller(example), silent(example)
        except (RuntimeError, ValueError, IndexError):  # as forwards say that sizes do not fit
            return False
        if found.shape != wanted.shape:
            return False
        if is_exact and not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            return False
        if not any(counting):
            break
    return True


def _counts(module: nn.Module, member: Member) -> bool:
    """Whether the member's outputs depend on how many channels there are."""
    if member.side is Side.PARAMETER:
        return False
    return isinstance(module.get_submodule(member.path), (nn.GroupNorm, nn.LayerNorm))


def _refusal(name: str, why: object) -> UserError:
    first = str(why).strip().split("\n")[0]
    return UserError(
        f"{name} does not work with fewer channels: {first}",
        "a model whose forward follows the sizes of its layers",
        "leave the layers out with --keep, or use --method factorise, sparse or int8",
    )


def _raw_groups(traced: nn.Module, example: Tensor, head: nn.Module, name: str) -> list[Any]:
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise UserError(
            "structured pruning needs Torch-Pruning, which is not installed",
            "pip install 'warmstart[compress]'",
        ) from error
    kinds = {type(traced.get_submodule(path)) for path in find_attentions(traced)}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # parameters outside of layers: looked at below
        try:
            graph = tp.DependencyGraph().build_dependency(
                traced,
                example,
                forward_fn=lambda module, images: module(images),
                customized_pruners={kind: _Whole() for kind in kinds},
                verbose=False,
            )
            return list(graph.get_all_groups(ignored_layers=list(head.modules())))
        except Exception as error:
            first = f"{type(error).__name__}: {error}".split("\n")[0]
            raise UserError(
                f"Torch-Pruning cannot follow {name}: {first}",
                "a model whose forward it can trace",
                "--method factorise, sparse or int8",
            ) from error


class _Whole:
    """Of attentions, to Torch-Pruning: what reaches one, from either side, goes no further, and shows in its group."""

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise AssertionError("nothing is pruned by the library itself")

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise AssertionError("nothing is pruned by the library itself")

    def get_in_channels(self, layer: nn.Module) -> None:
        return None

    def get_out_channels(self, layer: nn.Module) -> None:
        return None


def _translated(raw: Any, names: dict[Any, str], module: nn.Module) -> Group | None:
    """None: its channels leave the model, or a member has them in a way that is not known."""
    num_channels = len(raw[0].idxs)
    members: dict[tuple[str, Side], list[list[int]]] = {}
    for item in raw:
        target = item.dep.target.module
        if type(target).__name__ == "_OutputOp":
            return None
        if target not in names:
            continue  # an operation without parameters
        side = _side(item.dep, target)
        if side is None or any(root is None for root in item.root_idxs):
            return None
        units = members.setdefault((names[target], side), [[] for _ in range(num_channels)])
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            units[root].append(index)
    step = math.lcm(*(_num_ties(module, path, side) for path, side in members), 1)
    if num_channels % step or num_channels // step < 2:
        return None
    if step > 1 and not all(_fits(module, path, side, units) for (path, side), units in members.items()):
        return None
    size = num_channels // step
    joined = [
        Member(
            path,
            side,
            tuple(
                tuple(sorted({index for root in range(unit, num_channels, size) for index in units[root]}))
                for unit in range(size)
            ),
        )
        for (path, side), units in members.items()
    ]
    return Group(tuple(joined))


def _side(dep: Any, target: Any) -> Side | None:
    """Of what the member loses channels; None: it is no layer that can lose them."""
    if isinstance(target, nn.Parameter):
        return Side.PARAMETER if long_dim(target) is not None else None
    if not isinstance(target, _CHANNEL_LAYERS):
        return None
    if isinstance(target, nn.LayerNorm) and len(target.normalized_shape) > 1:
        return None
    if isinstance(target, _ConvTransposeNd) and target.groups > 1:
        return None
    if isinstance(target, (nn.PReLU, *NORMS)):
        return Side.BOTH
    if isinstance(target, _ConvNd) and target.groups > 1:
        if target.groups == target.in_channels == target.out_channels:
            return Side.BOTH
        if target.groups in (target.in_channels, target.out_channels):
            return None  # several filters per input
    return Side.IN if "in_channels" in dep.handler.__name__ else Side.OUT


def _num_ties(module: nn.Module, path: str, side: Side) -> int:
    """How many channels of a member can only go together: one of each of its groups."""
    if side is Side.PARAMETER:
        return 1
    layer = module.get_submodule(path)
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return int(getattr(layer, "groups", 1)) if side is not Side.BOTH else 1


def _fits(module: nn.Module, path: str, side: Side, units: list[list[int]]) -> bool:
    """Whether the channels of a tied member are the group's, one by one and in order."""
    return _num_ties(module, path, side) == 1 or units == [[index] for index in range(len(units))]
