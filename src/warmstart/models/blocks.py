"""Any model -> ordered blocks from stem to head: the rows of the plan, the units of freezing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from warmstart.models.margin import CosineClassifier
from warmstart.models.zoo import timm_groups
from warmstart.records import Block

# Words of --freeze, --lrs and --unfreeze, or names given here: no other block may take them.
_RESERVED = frozenset({"stem", "head", "margin_head", "backbone", "all"})
# What torchvision and segmentation_models_pytorch put all their stages in.
_OPENED_PACKAGES = ("torchvision.models.", "segmentation_models_pytorch.")
_CONTAINERS = frozenset(
    {"features", "blocks", "layers", "trunk_output", "backbone", "encoder", "encoder.layers"}
    | {f"encoder.{name}" for name in ("features", "blocks", "_blocks", "model", "model.blocks")}
    | {"encoder.model.model", "encoder.model.model.blocks"}
)
_TRANSFORMERS_CONTAINERS = (
    *("encoder", "layers", "layer", "stages", "encoder.layers", "encoder.layer", "encoder.stages"),
    *("model", "model.layers", "model.layer", "model.stages"),
)
_TOWERS = frozenset(
    f"{tower}{path}"
    for tower in ("vision_model", "text_model")
    for path in ("", ".encoder", ".encoder.layers")
)
# Encoders in the way of PVT register all patch embeddings, then all blocks, then all norms.
_STAGE = re.compile(r"(patch_embed|block|norm)(\d+)")
_ORDER_IN_STAGE = ("patch_embed", "block", "norm")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def find_blocks(module: nn.Module, head: str) -> tuple[Block, ...]:
    """Blocks from stem to head; the classifier at path `head` is always the last, named `head`
    (`margin_head` where it is one).

    A timm model is cut by its own layer groups (`group_matcher`), any other by its children,
    those of torchvision and segmentation_models_pytorch also by those of its `features` and the like.
    Norms behind the last stage belong to it. Every parameter and buffer is
    in exactly one block; shared ones are named once, under their first name.
    """
    parameters = dict(module.named_parameters())
    in_head = [name for name in parameters if _under(name, head)]
    assert in_head, f"no parameter under the head {head!r}"
    groups, first_name = timm_groups(module), "stem"
    if groups is None:
        children = list(_children_of(module))
        groups, first_name = _child_groups(children, parameters), ""
    backbone = [[name for name in group if not _under(name, head)] for group in groups]
    backbone = _join_trailing_norms([group for group in backbone if group], parameters)
    names = _block_names(backbone, parameters, first_name)
    last = "margin_head" if isinstance(module.get_submodule(head), CosineClassifier) else "head"
    return _assemble(module, [*zip(names, backbone, strict=True), (last, in_head)])


def _under(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _child_groups(
    children: list[tuple[str, nn.Module]], parameters: Mapping[str, nn.Parameter]
) -> list[list[str]]:
    """Children in order; a norm joins the child before it; parameters of none of them join the first."""
    groups = [[name for name in parameters if not any(_under(name, path) for path, _ in children)]]
    fresh = True  # the group in hand holds no child yet
    for path, child in children:
        names = [name for name in parameters if _under(name, path)]
        if fresh or isinstance(child, _NORMS):
            groups[-1] += names
        else:
            groups.append(names)
        fresh = fresh and not names
    return [group for group in groups if group]


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named children; a list of blocks (not of single layers) is replaced by its items."""
    for name, child in _in_call_order(module):
        items = [(n, c) for n, c in child.named_children() if next(c.parameters(), None) is not None]
        is_list = isinstance(child, (nn.Sequential, nn.ModuleList))
        if is_list and items and all(next(c.children(), None) is not None for _, c in items):
            yield from ((f"{name}.{n}", c) for n, c in items)
        else:
            yield name, child


def _children_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    package = type(module).__module__
    if package.startswith(_OPENED_PACKAGES):
        return _opened(module, _CONTAINERS)
    inner = getattr(module, "base_model_prefix", None)
    if package.startswith("transformers.") and inner:
        return _opened(module, {inner, *(f"{inner}.{path}" for path in _TRANSFORMERS_CONTAINERS)})
    if package == "warmstart.models.image_text.model":
        return _opened(module, _TOWERS)
    if package == "warmstart.models.hf_zoo":
        return _opened(module, {"backbone", *(f"backbone.{path}" for path in _TRANSFORMERS_CONTAINERS)})
    return _children(module)


def _in_call_order(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Named children, as they are registered; but those of numbered stages stage by stage, as they compute."""
    children = list(module.named_children())
    matches = {name: match for name, _ in children if (match := _STAGE.fullmatch(name))}
    staged = iter(
        sorted(
            (pair for pair in children if pair[0] in matches),
            key=lambda pair: (int(matches[pair[0]][2]), _ORDER_IN_STAGE.index(matches[pair[0]][1])),
        )
    )
    return [next(staged) if name in matches else (name, child) for name, child in children]


def _opened(
    module: nn.Module, containers: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Named children; containers of all stages are replaced by their items."""
    for name, child in _in_call_order(module):
        path = f"{prefix}{name}"
        if path in containers:
            yield from _opened(child, containers, f"{path}.")
        else:
            yield path, child


def _join_trailing_norms(groups: list[list[str]], parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """A last group without any matrix is the final norm: not worth a row, it belongs to the last stage."""
    if len(groups) > 1 and all(parameters[name].ndim <= 1 for name in groups[-1]):
        return [*groups[:-2], groups[-2] + groups[-1]]
    return groups


def _block_names(
    groups: list[list[str]], parameters: Mapping[str, nn.Parameter], first_name: str
) -> list[str]:
    owner = {name: index for index, group in enumerate(groups) for name in group}
    names = [_block_name(index, owner, parameters) for index in range(len(groups))]
    if first_name and names:
        names[0] = first_name
    assert len(set(names)) == len(names), f"two blocks have one name: {names}"
    return names


def _block_name(index: int, owner: Mapping[str, int], parameters: Mapping[str, nn.Parameter]) -> str:
    """The shortest dotted prefix that no other block shares, following where most of the weights are."""
    mine = [name for name, at in owner.items() if at == index]
    prefix = ""
    while prefix not in mine:
        start = len(prefix) + 1 if prefix else 0
        sizes: dict[str, int] = {}
        for name in mine:
            part = name[:start] + name[start:].partition(".")[0]
            sizes[part] = sizes.get(part, 0) + parameters[name].numel()
        prefix = max(sizes, key=lambda part: sizes[part])
        mine = [name for name in mine if _under(name, prefix)]
        alone = all(at == index for name, at in owner.items() if _under(name, prefix))
        if alone and (prefix not in _RESERVED or (prefix == "stem" and index == 0)):
            return prefix
    return prefix


def _assemble(module: nn.Module, named_groups: list[tuple[str, list[str]]]) -> tuple[Block, ...]:
    """Give every buffer, norm and subtree to the block of its parameters."""
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    index_of = {name: index for index, (_, group) in enumerate(named_groups) for name in group}
    owner = {id(tensors[name]): index for name, index in index_of.items()}
    assert len(owner) == sum(len(group) for _, group in named_groups), "a parameter is in two blocks"
    buffers: list[list[str]] = [[] for _ in named_groups]
    for name, buffer in module.named_buffers():
        owner[id(buffer)] = _buffer_owner(module, name, owner)
        buffers[owner[id(buffer)]].append(name)
    assert all(id(t) in owner for t in tensors.values()), "a parameter is in no block"
    subtrees: list[list[str]] = [[] for _ in named_groups]
    for path, index in _pure_subtrees(module, "", owner, set()):
        subtrees[index].append(path)
    norms: list[list[str]] = [[] for _ in named_groups]
    for path, child in module.named_modules():
        if isinstance(child, _NormBase) and child.running_mean is not None:
            norms[owner[id(child.running_mean)]].append(path)
    return tuple(
        Block(name, tuple(group), tuple(buffers[i]), tuple(subtrees[i]), tuple(norms[i]))
        for i, (name, group) in enumerate(named_groups)
    )


def _buffer_owner(module: nn.Module, name: str, owner: Mapping[int, int]) -> int:
    """The block of the nearest parameters: those of its own module, else of the closest parent.

    Where a parent spans several blocks (position tables that all of them read) it is the first.
    """
    path = name.rpartition(".")[0]
    while True:
        parent = module.get_submodule(path)
        direct = [owner[id(p)] for p in parent.parameters(recurse=False)]
        near = direct or [owner[id(p)] for p in parent.parameters()]
        if near:
            return min(near)
        assert path, "a model without parameters has no blocks"
        path = path.rpartition(".")[0]


def _pure_subtrees(
    module: nn.Module, path: str, owner: Mapping[int, int], seen: set[int]
) -> Iterator[tuple[str, int]]:
    """(path, block) of the largest subtrees with tensors of one block only; a shared module comes once."""
    if id(module) in seen:
        return
    seen.add(id(module))
    owners = {owner[id(t)] for t in chain(module.parameters(), module.buffers())}
    if len(owners) == 1 and path:
        seen.update(id(inner) for inner in module.modules())
        yield path, owners.pop()
    elif owners:
        for name, child in module.named_children():
            yield from _pure_subtrees(child, f"{path}.{name}" if path else name, owner, seen)
