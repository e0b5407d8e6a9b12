"""What the layers of a model give, and which of them a class activation map is made of.

Shapes: N images, C channels, h x w places, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from warmstart.analysis.explain.places import Layout, layout_of
from warmstart.errors import UserError, closest
from warmstart.models.build import BuiltModel
from warmstart.records import Block

Score = Callable[[torch.Tensor], torch.Tensor]  # a model's outputs -> (N,), what is explained
_FEW_PLACES = 16  # with fewer, a map says little of where
_AT_LEAST = 2  # places that must have an influence on a score


@dataclass(frozen=True)
class Layer:
    """A layer that a map is made of. `answering` (T,) says which of the last tokens the classifier looks at."""

    path: str
    layout: Layout
    answering: torch.Tensor | None = None
    finer: str | None = None  # a layer that shows more, where this one has few places

    @property
    def words(self) -> str:
        more = "" if self.finer is None else f"; --layer {self.finer} shows more, and knows less of the class"
        return f"{self.path}, {self.layout}{more}"


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """While it lasts no parameter asks for a gradient: only activations do, which is all that is needed."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def watched(module: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """While it lasts, what these modules give, by path, in the order in which they finish (the last call counts).

    The model goes on with a copy: what follows may work in place.
    """
    outputs: dict[str, torch.Tensor] = {}

    def watch(path: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> Any:
            outputs.pop(path, None)
            if isinstance(output, torch.Tensor):
                outputs[path] = output
                return output.clone()
            if type(output) in (tuple, list) and output and isinstance(output[0], torch.Tensor):
                outputs[path] = output[0]
                return type(output)([output[0].clone(), *output[1:]])
            return None

        return module.get_submodule(path).register_forward_hook(note)

    hooks = [watch(path) for path in paths]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def layouts(module: nn.Module, inputs: torch.Tensor, outputs: dict[str, torch.Tensor]) -> dict[str, Layout]:
    """How each of the `outputs` of `watched`, of images (N, C, H, W), lies over them; only those that do.

    The grid of tokens is that of the last convolution before them, which cuts the image into patches.
    """
    found: dict[str, Layout] = {}
    image, grid = (inputs.shape[2], inputs.shape[3]), None
    for path, tensor in outputs.items():
        if len(tensor) != len(inputs):
            continue
        layout = layout_of(tensor.shape, image, grid)
        if layout is None:
            continue
        if tensor.ndim > 3:
            grid = layout.height, layout.width
        found[path] = layout
    return found


def block_modules(module: nn.Module, block: Block) -> list[str]:
    """Paths of what computes a block: its subtrees, with the items of lists in their place."""
    return list(chain.from_iterable(_called(module, path) for path in block.modules))


def _called(module: nn.Module, path: str) -> list[str]:
    part = module.get_submodule(path)
    if not isinstance(part, nn.ModuleList | nn.ModuleDict):
        return [path]
    return list(chain.from_iterable(_called(module, f"{path}.{name}") for name, _ in part.named_children()))


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def find_layer(built: BuiltModel, inputs: torch.Tensor, score: Score, path: str | None = None) -> Layer:
    """The layer whose map explains a score: the last output of a block, or of a norm in one, that lies over the image
    and whose places have an influence on the score.

    So it is the last stage of a convolutional net, and of a transformer that answers by a class token the norm before
    its last attention, behind which the other tokens are not looked at. Of a segmenting model it is the last of the
    coarsest maps, as in Seg-Grad-CAM (Vinogradova et al. 2020): finer ones only repeat the mask. `path` names another.

    Raises:
        UserError: no such layer, one that gives no map, or a model without any.
    """
    module, image = built.module, torch.cat([inputs[:1], inputs[:1]])
    if path is not None:
        _check_layer(module, path)
    named = [] if path is None else [path]
    first = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    backbone = [block for block in built.blocks[:-1] if not is_text(block)]
    inside = [name for block in backbone for name in block_modules(module, block)]
    norms = [name for name, part in module.named_modules() if is_norm(part) and _under(name, inside)]
    preferred = {*inside, *norms}
    every = [name for name, _ in module.named_modules() if name and not _under(name, [built.head])]
    outputs, found, reached = _influence(module, image, score, [*dict.fromkeys([*every, *first, *named])])
    answering = _answering(found, reached)
    maps = {name: layout for name, layout in found.items() if _places_reached(layout, reached[name])}
    if path is not None:
        if path not in found:
            shape = (
                f"gives {tuple(outputs[path].shape[1:])}"
                if path in outputs
                else "is not called, or gives no tensor"
            )
            raise UserError(
                f"--layer {path} {shape}: no map over the image",
                "a layer whose output has places",
                f"for example {_choose(maps, preferred, built.segments)}" if maps else "",
            )
        return Layer(path, found[path], answering)
    if not maps:
        raise UserError(
            f"{built.name} has no layer whose output lies over the image and leads to its answer",
            "a convolutional net, or a transformer of patches, on images with more than one patch",
            "--layer PATH names one",
        )
    chosen = _choose(maps, preferred, built.segments)
    fine = [name for name in maps if name in inside and maps[name].num_places >= _FEW_PLACES]
    is_coarse = maps[chosen].num_places < _FEW_PLACES and fine
    return Layer(chosen, maps[chosen], answering, fine[-1] if is_coarse else None)


def _choose(maps: dict[str, Layout], preferred: set[str], segments: bool) -> str:
    """The last one, of several that give the same the outermost; of masks the coarsest."""
    names = [name for name in maps if name in preferred] or list(maps)
    if segments:
        fewest = min(maps[name].num_places for name in names)
        names = [name for name in names if maps[name].num_places == fewest]
    return names[-1]


def _influence(
    module: nn.Module, image: torch.Tensor, score: Score, paths: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Layout], dict[str, torch.Tensor]]:
    """All outputs; the layouts of those that are maps; and where the score's slope by them is not 0, (N, h w or T)."""
    with frozen(module), torch.enable_grad():
        with watched(module, paths) as outputs:
            total = score(module(image.detach().clone().requires_grad_().clone())).sum()
        found = {n: x for n, x in layouts(module, image, outputs).items() if outputs[n].requires_grad}
        tensors = [outputs[name] for name in found]
        if not tensors or not total.requires_grad:
            return outputs, {}, {}
        gradients = torch.autograd.grad(total, tensors, allow_unused=True)
    reached = {}
    for (name, layout), gradient in zip(found.items(), gradients, strict=True):
        if gradient is None:
            reached[name] = torch.zeros(1, layout.prefix + layout.num_places, dtype=torch.bool)
        elif layout.kind == "tokens":
            reached[name] = (gradient != 0).any(dim=2)
        else:
            reached[name] = (layout.to_map(gradient) != 0).any(dim=1).flatten(1)
    return outputs, found, reached


def _places_reached(layout: Layout, reached: torch.Tensor) -> bool:
    return bool(reached[:, layout.prefix :].sum(dim=1).max() >= _AT_LEAST)


def _answering(found: dict[str, Layout], reached: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """(T,): which tokens of the last layer of tokens lead to the score: the class token, or all places."""
    tokens = [name for name, x in found.items() if x.kind == "tokens" and bool(reached[name].any())]
    return reached[tokens[-1]].any(dim=0).cpu() if tokens else None


def _check_layer(module: nn.Module, path: str) -> None:
    names = [name for name, _ in module.named_modules() if name]
    if path not in names:
        raise UserError(
            f"--layer {path}: the model has no such layer",
            "the dotted path of a module, as in its checkpoint's keys",
            closest(path, names),
        )


def is_text(block: Block) -> bool:
    """Whether a block is of the text tower, which sees no image."""
    return all(name.startswith("text_") for name in block.parameters)


def _under(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
