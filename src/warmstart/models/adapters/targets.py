"""Which layers of a model get adapters: those that the settings name, or the family's default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from warmstart.errors import UserError, closest, listing
from warmstart.models.adapters.layers import refusal, weight_name, widest_rank
from warmstart.records import Block, Preprocessing

ALL_LINEAR = "all-linear"
# What a family's layers are called, from the first line that all of whose names a model has: queries and values (Hu et
# al. 2021, section 4.2), fused with the keys where the model does so; the two layers of ConvNeXt's blocks. Otherwise
# every layer that can have an adapter.
_FAMILIES = (("qkv",), ("q_proj", "v_proj"), ("query", "value"), ("self_attention",), ("mlp.fc1", "mlp.fc2"))
_LEAST_SHARE = 1 / 3  # of the blocks; an attention that only pools at the end makes no family
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Targets:
    """Paths of layers, in the model's order, and what should be known of how they were found."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def resolve_targets(
    module: nn.Module,
    blocks: Sequence[Block],
    frozen: Collection[str],
    patterns: Sequence[str],
    rank: int,
    preprocessing: Preprocessing,
) -> Targets:
    """The layers that get adapters of this rank: those of no block named in `frozen`, nor of the last one, the head.

    A pattern is a path, the end of paths (`q_proj`), a glob, or `all-linear`; without any it is the family's default.
    UserError: a pattern that names no layer, or only such as cannot have an adapter.
    """
    owner = {name: block.name for block in blocks for name in block.parameters}
    reasons: dict[str, str] = {}
    usable: dict[str, nn.Module] = {}
    ran = _called(module, preprocessing)
    times = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    for path, layer in module.named_modules():
        block = owner.get(f"{path}.{weight_name(layer)}")
        if (why := refusal(layer)) is not None:
            reasons[path] = why
        elif block is None or times[id(layer.get_parameter(weight_name(layer)))] > 1:
            reasons[path] = "shares its weight with another layer"
        elif block == blocks[-1].name:
            reasons[path] = "is of the head, which always trains whole"
        elif block in frozen:
            reasons[path] = f"is in the block {block}, which is frozen"
        elif path not in ran:
            reasons[path] = "is never called: the model computes with its weight by itself, or not at all"
        else:
            usable[path] = layer
    if not usable:
        raise UserError(
            "--lora.rank: no layer is left that could have an adapter",
            "a linear layer, a convolution without groups or an nn.MultiheadAttention in a block that is not frozen",
            "without --lora.rank, --freeze backbone trains the head alone",
        )
    if not patterns:
        return _default(usable, owner, rank)
    found, notes = set[str](), []
    for pattern in patterns:
        named, left = _named(pattern, usable, reasons, module)
        found |= named
        notes += [f"--lora.targets {pattern}: no adapter at {left}"] if left else []
    _check_rank({path: layer for path, layer in usable.items() if path in found}, rank)
    return Targets(tuple(path for path in usable if path in found), tuple(notes))


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _default(usable: Mapping[str, nn.Module], owner: Mapping[str, str], rank: int) -> Targets:
    """The layers of the model's family that are wide enough."""

    def blocks_of(paths: Sequence[str]) -> set[str]:
        return {owner[f"{path}.{weight_name(usable[path])}"] for path in paths}

    chosen = list(usable)
    for names in _FAMILIES:
        by_name = [[path for path in usable if _matches(path, name)] for name in names]
        found = [path for path in usable if any(path in paths for paths in by_name)]
        is_family = len(blocks_of(found)) >= _LEAST_SHARE * len(blocks_of(list(usable)))
        if all(by_name) and is_family:
            chosen = found
            break
    wide = tuple(path for path in chosen if widest_rank(usable[path]) >= rank)
    narrow = [path for path in chosen if path not in wide]
    if not wide:
        _check_rank({path: usable[path] for path in chosen}, rank)
    note = f"--lora.rank {rank}: {len(narrow)} layers are narrower and have no adapter: {listing(narrow, 3)}"
    return Targets(wide, (note,) if narrow else ())


def _check_rank(chosen: Mapping[str, nn.Module], rank: int) -> None:
    ranks = {path: widest_rank(layer) for path, layer in chosen.items()}
    narrow = [path for path, widest in ranks.items() if widest < rank]
    if narrow:
        raise UserError(
            f"--lora.rank {rank}: {len(narrow)} of {len(ranks)} layers have a smaller rank by themselves: "
            f"{listing((f'{path} ({ranks[path]})' for path in narrow), 3)}",
            f"a rank up to {min(ranks.values())}",
            "a smaller --lora.rank, or --lora.targets that leave them out",
        )


def _named(
    pattern: str, usable: Mapping[str, nn.Module], reasons: Mapping[str, str], module: nn.Module
) -> tuple[set[str], str]:
    """The usable layers that a pattern names, and in words those of their kinds that it names in vain."""
    if pattern == ALL_LINEAR:
        kinds = (nn.Linear, nn.MultiheadAttention)
        found = {path for path, layer in usable.items() if isinstance(layer, kinds)}
    else:
        found = {path for path in usable if _matches(path, pattern)}
    refused = {path: why for path, why in reasons.items() if path and _matches(path, pattern)}
    layers = [path for path in refused if isinstance(module.get_submodule(path), _ADAPTABLE)]
    if found:
        left = f"{len(layers)} layers: {layers[0]} {refused[layers[0]]}" if layers else ""
        return found, left
    if refused:
        first = (layers or list(refused))[0]
        inside = next((path for path in usable if path.startswith(f"{first}.")), None)
        raise UserError(
            f"--lora.targets: {pattern!r} names nothing that can have an adapter: {first} {refused[first]}",
            "linear layers, convolutions without groups or nn.MultiheadAttention, such as "
            f"{inside or next(iter(usable))}",
            f"{pattern}.* names the layers in it" if inside else "",
        )
    ends = dict.fromkeys(path.rpartition(".")[2] for path in usable)
    raise UserError(
        f"--lora.targets: {pattern!r} names no layer of this model",
        f"the end of a path ({listing(ends)}), a glob, or {ALL_LINEAR}",
        closest(pattern, [*ends, *usable, ALL_LINEAR]),
    )


def _called(module: nn.Module, preprocessing: Preprocessing) -> set[str]:
    """The paths of modules that a forward pass calls: what is computed beside them, an adapter there would miss."""
    ran: set[str] = set()
    hooks = [
        part.register_forward_pre_hook(lambda _, __, path=path: ran.add(path))
        for path, part in module.named_modules()
    ]
    modes = {part: part.training for part in module.modules()}
    parameter = next(module.parameters())
    images = parameter.new_zeros((1, preprocessing.num_channels, *preprocessing.image_size))
    module.eval()
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
        for part, is_training in modes.items():
            part.training = is_training
    return ran
