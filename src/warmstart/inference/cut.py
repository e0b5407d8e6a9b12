"""A model cut in two where its frozen part ends: the prefix is computed once per image, the tail is trained.

No model offers such a cut by itself. The tail is the model's own forward pass, in which the frozen modules hand over
zeros of the right shape instead of computing, until at the cut the kept features take their place. find_cut.py says
where, and proves it. Where several tensors cross the cut (an encoder's maps, for a decoder), they lie side by side in
one row of numbers per image, maps (C, h, w) as h w C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import nn


class NoCut(Exception):
    """The model cannot be cut there; `str()` is the reason in one line."""


class _Reached(Exception):
    """The features are there: what comes after the cut need not be computed."""


@dataclass(frozen=True)
class Slot:
    """A tensor that a frozen module gives: its shape for one image, and whether it is one of the kept features."""

    shape: tuple[int, ...]
    kept: bool


@dataclass(frozen=True)
class Cut:
    """Where a model is cut: at the input of module `first` (the first that trains), or at outputs of frozen modules.

    `outputs` are what each frozen module gives: a slot, or a tuple of slots and plain numbers. `expands`: whether code
    between the modules asks for the true number of images.
    """

    frozen: tuple[str, ...]
    outputs: tuple[Any, ...]
    first: str
    at_input: bool
    expands: bool

    @property
    def name(self) -> str:
        places = [self.first] if self.at_input else list(self.kept)
        kind = "input" if self.at_input else "output"
        listed = ", ".join(places[:-1]) + " and " if places[1:] else ""
        return f"{kind} of {listed}{places[-1]}"

    @cached_property
    def kept(self) -> dict[str, tuple[bool, ...]]:
        """For each frozen module with features, which of its tensors they are."""
        pairs = zip(self.frozen, self.outputs, strict=True)
        marks = {path: tuple(slot.kept for slot in parts(output)) for path, output in pairs}
        return {path: found for path, found in marks.items() if any(found)}

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of the features of one image, where they are outputs."""
        return tuple(slot.shape for output in self.outputs for slot in parts(output) if slot.kept)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cut:
        """Inverse of `dataclasses.asdict` and a JSON file."""
        outputs = tuple(_output_from_json(output) for output in values["outputs"])
        return cls(**{**values, "frozen": tuple(values["frozen"]), "outputs": outputs})


def _output_from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return Slot(tuple(value["shape"]), value["kept"])
    return tuple(map(_output_from_json, value)) if isinstance(value, list) else value


def changed(output: Any, change: Callable[[Any], Any]) -> Any:
    """What a module gives, as nested tuples, with `change` of each tensor (or slot) in its place.

    Raises:
        NoCut: it is something else than tensors and numbers.
    """
    if isinstance(output, torch.Tensor | Slot):
        return change(output)
    if isinstance(output, tuple | list):
        return tuple(changed(each, change) for each in output)
    if output is None or isinstance(output, int | float):
        return output
    raise NoCut(f"{type(output).__name__} is something else than tensors and numbers")


def parts(output: Any) -> list[Any]:
    """The tensors (or slots) of what a module gives."""
    found: list[Any] = []
    changed(output, found.append)
    return found


def prefix_features(module: nn.Module, cut: Cut, images: torch.Tensor) -> torch.Tensor:
    """What reaches the cut, computed in evaluation mode without a graph; nothing behind it is run."""
    found: dict[str, list[torch.Tensor]] = {}

    def keep_input(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found[cut.first] = [arguments[0]]
        raise _Reached

    def keep_output(path: str, _: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        chosen = [tensor for tensor, kept in zip(parts(output), cut.kept[path], strict=True) if kept]
        # What follows may work in place, and the next module may be far.
        found[path] = chosen if len(cut.shapes) == 1 else [_as_row(tensor).clone() for tensor in chosen]
        if len(found) == len(cut.kept):
            raise _Reached

    if cut.at_input:
        hooks = [module.get_submodule(cut.first).register_forward_pre_hook(keep_input)]
    else:
        hooks = [
            module.get_submodule(path).register_forward_hook(partial(keep_output, path)) for path in cut.kept
        ]
    module.eval()
    try:
        with torch.inference_mode():
            module(images)
    except _Reached:
        with torch.inference_mode():
            tensors = [tensor for path in cut.kept or found for tensor in found[path]]
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
    finally:
        for hook in hooks:
            hook.remove()
    raise AssertionError("the forward pass never reached the cut")


def _as_row(tensor: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (N, numbers); maps with channels last, as most models compute them."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).flatten(1)


def _from_rows(rows: torch.Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """The inverse of `_as_row`, of several side by side; views."""
    found = []
    for part, shape in zip(rows.split([prod(shape) for shape in shapes], dim=1), shapes, strict=True):
        if len(shape) == 3:
            channels, height, width = shape
            found.append(part.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2))
        else:
            found.append(part.unflatten(1, shape))
    return found


class Tail(nn.Module):
    """The model behind the cut, sharing its modules: features in, outputs out."""

    def __init__(self, module: nn.Module, cut: Cut, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self._cut, self._image_shape = module, cut, image_shape
        self._zeros: dict[tuple[int, torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        cut = self._cut
        images, *outputs = self._stand_ins(features)
        shapes = cut.shapes
        kept, zeros = iter(_from_rows(features, shapes) if len(shapes) > 1 else [features]), iter(outputs)
        handed = {
            path: changed(output, lambda slot: next(kept if slot.kept else zeros))
            for path, output in zip(cut.frozen, cut.outputs, strict=True)
        }
        with standing_in(self.module, handed), _given(self.module, cut, features):
            return self.module(images)

    def _stand_ins(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zeros for the images and for every other output, made once: nobody reads what becomes of them."""
        num = len(features) if self._cut.expands else 1
        key = num, features.device, features.dtype
        if key not in self._zeros:
            slots = (slot for output in self._cut.outputs for slot in parts(output) if not slot.kept)
            with torch.inference_mode(False):
                shapes = (self._image_shape, *(slot.shape for slot in slots))
                self._zeros = {key: tuple(features.new_zeros((num, *shape)) for shape in shapes)}
        return self._zeros[key]


@contextmanager
def standing_in(module: nn.Module, handed: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts these modules compute nothing and hand over what is given."""
    stood_in: list[nn.Module] = []

    def hand_over(result: Any) -> Callable[..., Any]:
        return lambda *arguments, **settings: result

    try:
        for path, result in handed.items():
            frozen = module.get_submodule(path)
            frozen.forward = hand_over(result)
            stood_in.append(frozen)
        yield
    finally:
        for frozen in stood_in:
            del frozen.forward  # the class's own again


@contextmanager
def _given(module: nn.Module, cut: Cut, features: torch.Tensor) -> Iterator[None]:
    """While it lasts the features appear at the input where the cut is, if it is at one."""
    if not cut.at_input:
        yield
        return
    first = module.get_submodule(cut.first)
    hook = first.register_forward_pre_hook(lambda _, arguments: (features, *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()
