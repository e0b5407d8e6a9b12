"""A compressed model as its name and what was made of it: edits that a file of weights says of itself.

They are applied to a freshly made model before the file's tensors are loaded, so that every reader of weights knows
compressed ones. Nothing in a file can run code: an edit is data, and what it does is written here. Shapes: D inputs, E
outputs, k x l the kernel and r the rank of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.adapters.layers import refusal
from warmstart.models.created import Shape
from warmstart.models.quantised import quantise
from warmstart.records import Edit, Recipe

RESIZE, FACTORISE, SPARSE, QUANTISED = "resize", "factorise", "sparse", "quantised"
# Of a factorised layer: `low-rank` (k x l to r outputs, then 1 x 1) of any, `separable` (k x 1, then 1 x l; Jaderberg
# et al. 2014, arXiv 1405.3866, scheme 2) of convolutions.
LOW_RANK, SEPARABLE = "low-rank", "separable"


def apply(module: nn.Module, recipe: Recipe, source: str = "the file") -> None:
    """Do the edits in order, in place, on a module that is as its zoo makes it; on the meta device too.

    Tensors that get smaller keep their first elements; those of new layers are not initialised: the file has them.

    Raises:
        UserError: a recipe for another model, or one that was changed by hand.
    """
    for edit in recipe.edits:
        if edit.kind not in _EDITS:
            _refuse(source, f"{edit.kind!r} is no kind of edit")
        _EDITS[edit.kind](module, edit, source)
    # Last, as a layer that gets smaller gets another parameter.
    _hold_zeros(
        module, dict.fromkeys(path for edit in recipe.edits if edit.kind == SPARSE for path in edit.layers)
    )


def difference(before: nn.Module, after: nn.Module) -> Edit:
    """The resize edit that makes `before` as small as `after`, which was made from a copy of it.

    Raises:
        UserError: they differ in more than sizes.
    """
    layers: dict[str, dict[str, Any]] = {}
    old, new = dict(before.named_modules()), dict(after.named_modules())
    if [(path, type(part)) for path, part in old.items()] != [
        (path, type(part)) for path, part in new.items()
    ]:
        raise UserError(
            f"the smaller {type(before).__name__} has other layers, not only smaller ones",
            "the same layers with fewer channels",
            "leave out the layers that were replaced (--keep PATTERN)",
        )
    for path, part in old.items():
        sizes, others = _sizes(part), _sizes(new[path])
        changed = {name: others[name] for name, size in sizes.items() if others.get(name, size) != size}
        if changed:
            layers[path] = changed
    shapes: dict[str, tuple[int | None, ...]] = {}
    tensors = _tensors(after)
    for name, tensor in _tensors(before).items():
        pairs = list(zip(tensor.shape, tensors[name].shape, strict=True))
        if any(mine != theirs for mine, theirs in pairs):
            shapes[name] = tuple(None if mine == theirs else theirs for mine, theirs in pairs)
    return Edit(RESIZE, layers, shapes)


def _refuse(source: str, problem: str) -> NoReturn:
    raise UserError(
        f"the recipe in {source} does not fit its model: {problem}",
        "what `warmstart compress` wrote, unchanged, and the same version of the model's zoo",
        "compress the original again, or take the file from a copy",
    )


def _sizes(part: nn.Module) -> dict[str, Any]:
    """The numbers that a layer keeps of its own form; tuples as lists, as JSON has them."""
    found = {}
    for name, value in vars(part).items():
        if _is_number(value):
            found[name] = value
        elif isinstance(value, (tuple, list)) and value and all(map(_is_number, value)):
            found[name] = list(value)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that files leave out and those of two names too."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _layer(module: nn.Module, path: str, source: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        _refuse(source, f"it has no layer {path!r}")


def _resize(module: nn.Module, edit: Edit, source: str) -> None:
    for path, sizes in edit.layers.items():
        part = _layer(module, path, source)
        own = _sizes(part)
        for name, value in dict(sizes).items():
            is_list = isinstance(value, list)
            if (
                name not in own
                or is_list != isinstance(own[name], list)
                or not all(map(_is_number, value if is_list else [value]))
            ):
                _refuse(source, f"{path} has no size {name!r} that could be {value!r}")
            setattr(part, name, type(getattr(part, name))(value))
    tensors, done = _tensors(module), dict[int, Tensor]()
    for name, sides in edit.shapes.items():
        path, _, last = name.rpartition(".")
        old = tensors.get(name)
        if old is None or len(sides) != old.ndim:
            _refuse(source, f"it has no tensor {name!r} of {len(sides)} sides")
        shape = [mine if side is None else side for mine, side in zip(old.shape, sides, strict=True)]
        if not all(isinstance(n, int) and 0 < n <= mine for n, mine in zip(shape, old.shape, strict=True)):
            _refuse(source, f"{name} of {_words(tuple(old.shape))} cannot become {_words(tuple(shape))}")
        if id(old) not in done:  # one tensor under two names stays one
            cut = old.detach()[tuple(slice(0, side) for side in shape)].clone()
            is_parameter = isinstance(old, nn.Parameter)
            done[id(old)] = nn.Parameter(cut, old.requires_grad) if is_parameter else cut
        setattr(module.get_submodule(path), last, done[id(old)])


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _factorise(module: nn.Module, edit: Edit, source: str) -> None:
    for path, form in edit.layers.items():
        layer = _layer(module, path, source)
        if (why := unfactorable(layer)) is not None:
            _refuse(source, f"{path} {why}")
        rank, kind = form.get("rank"), form.get("form")
        if not isinstance(rank, int) or rank < 1 or kind not in (LOW_RANK, SEPARABLE):
            _refuse(source, f"{path} cannot become {form!r}")
        if kind == SEPARABLE and not isinstance(layer, nn.Conv2d):
            _refuse(source, f"{path} is no convolution")
        put(module, path, factors(layer, rank, kind))


def unfactorable(layer: nn.Module) -> str | None:
    """Why a layer cannot become two, in words that follow its name; None: it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return refusal(layer) or f"is a {type(layer).__name__}, which is no layer of one matrix"
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or isinstance(layer.padding, str)):
        return "is a convolution of groups, or one that finds its padding by itself"
    return None


def factors(layer: nn.Module, rank: int, form: str) -> nn.Sequential:
    """Two layers in place of a linear layer or a convolution, whose weights are not initialised yet.

    Linear (D, E): (D, r) then (r, E). Convolution, low-rank: k x l to r, then 1 x 1; separable: k x 1, then 1 x l.
    """
    has_bias = layer.bias is not None
    with torch.device("meta"):  # built without touching the global generator
        if isinstance(layer, nn.Linear):
            first: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            second: nn.Module = nn.Linear(rank, layer.out_features, bias=has_bias)
        else:
            assert isinstance(layer, nn.Conv2d), "asked of unfactorable before"
            first, second = _convolutions(layer, rank, form, has_bias)
    weight = layer.get_parameter("weight")
    made = nn.Sequential(first, second).to_empty(device=weight.device).to(weight.dtype)
    return made.train(layer.training)


def _convolutions(layer: nn.Conv2d, rank: int, form: str, has_bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    keys = ("kernel_size", "stride", "padding", "dilation")
    pairs: dict[str, tuple[int, int]] = {key: getattr(layer, key) for key in keys}
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    if form == LOW_RANK:
        down: dict[str, Any] = {**pairs}
        up: dict[str, Any] = neutral
    else:
        down = {key: (pairs[key][0], neutral[key]) for key in keys}
        up = {key: (neutral[key], pairs[key][1]) for key in keys}
    return (
        nn.Conv2d(layer.in_channels, rank, bias=False, padding_mode=layer.padding_mode, **down),
        nn.Conv2d(rank, layer.out_channels, bias=has_bias, padding_mode=layer.padding_mode, **up),
    )


def put(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Set the layer at its path."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)


def _sparse(module: nn.Module, edit: Edit, source: str) -> None:
    for path in edit.layers:
        if not isinstance(getattr(_layer(module, path, source), "weight", None), nn.Parameter):
            _refuse(source, f"{path} has no weight")


def _hold_zeros(module: nn.Module, paths: Iterable[str]) -> None:
    """Weights that are zero stay zero: no gradient reaches them, whatever is loaded after this.

    Optimizers that move each weight by its own gradient then leave zeros alone, weight decay and momentum too; the
    others are refused (engine/optimizer.check_zeros).
    """

    def hold(weight: Tensor) -> None:
        weight.register_hook(lambda gradient: gradient * (weight != 0))

    for path in paths:
        weight = getattr(module.get_submodule(path), "weight", None)
        if isinstance(weight, nn.Parameter):  # a layer that was factorised since has two, of products
            hold(weight)


def _quantised(module: nn.Module, edit: Edit, source: str) -> None:
    for path, form in edit.layers.items():
        point, levels = form.get("output"), form.get("levels")
        if not isinstance(point, str) or not isinstance(levels, int) or not 0 < levels < 128:
            _refuse(source, f"{path} cannot become {form!r}")
        try:
            quantise(module, path, point, levels)
        except (AttributeError, TypeError) as error:
            _refuse(source, f"{path} cannot be quantised: {error}")


_EDITS: Mapping[str, Callable[[nn.Module, Edit, str], None]] = {
    RESIZE: _resize,
    FACTORISE: _factorise,
    SPARSE: _sparse,
    QUANTISED: _quantised,
}
