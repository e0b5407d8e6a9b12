"""A model cut in two where its frozen part ends: the prefix is computed once per image, the tail is trained.

No model offers such a cut by itself. The tail is the model's own forward pass, in which the frozen modules hand over
zeros of the right shape instead of computing, until at the cut the kept features take their place. Whether that is
the same function is not argued but tried: on real images, in evaluation and in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class NoCut(Exception):
    """The model cannot be cut there; `str()` is the reason in one line."""


class _Reached(Exception):
    """The features are there: what comes after the cut need not be computed."""


@dataclass(frozen=True)
class Cut:
    """Where a model is cut: at the input of module `first` (the first that trains), or at the output of `last`.

    `shapes` are what each frozen module gives for one image. `expands`: whether code between them asks for
    the true number of images.
    """

    frozen: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    last: str
    first: str
    at_input: bool
    expands: bool

    @property
    def name(self) -> str:
        return f"input of {self.first}" if self.at_input else f"output of {self.last}"


def prefix_features(module: nn.Module, cut: Cut, images: torch.Tensor) -> torch.Tensor:
    """What reaches the cut, computed in evaluation mode without a graph; nothing behind it is run."""
    found: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append(arguments[0])
        raise _Reached

    def keep_output(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        found.append(output)
        raise _Reached

    place = module.get_submodule(cut.first if cut.at_input else cut.last)
    hook = (
        place.register_forward_pre_hook(keep_input)
        if cut.at_input
        else place.register_forward_hook(keep_output)
    )
    module.eval()
    try:
        with torch.inference_mode():
            module(images)
    except _Reached:
        return found[0]
    finally:
        hook.remove()
    raise AssertionError("the forward pass never reached the cut")


class Tail(nn.Module):
    """The model behind the cut, sharing its modules: features in, outputs out."""

    def __init__(self, module: nn.Module, cut: Cut, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self._cut, self._image_shape = module, cut, image_shape
        self._zeros: dict[tuple[int, torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        images, *outputs = self._stand_ins(features)
        with _standing_in(self.module, self._cut, features, outputs):
            return self.module(images)

    def _stand_ins(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zeros for the images and for every frozen module, made once: nobody reads what becomes of them."""
        num = len(features) if self._cut.expands else 1
        key = num, features.device, features.dtype
        if key not in self._zeros:
            with torch.inference_mode(False):
                shapes = (self._image_shape, *self._cut.shapes)
                self._zeros = {key: tuple(features.new_zeros((num, *shape)) for shape in shapes)}
        return self._zeros[key]


@contextmanager
def _standing_in(
    module: nn.Module, cut: Cut, features: torch.Tensor, outputs: Sequence[torch.Tensor]
) -> Iterator[None]:
    """While it lasts the frozen modules compute nothing, and the features appear at the cut."""
    stood_in: list[nn.Module] = []
    hooks = []

    def hand_over(result: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda *arguments, **settings: result

    try:
        for path, zeros in zip(cut.frozen, outputs, strict=True):
            frozen = module.get_submodule(path)
            is_cut = path == cut.last and not cut.at_input
            frozen.forward = hand_over(features if is_cut else zeros)
            stood_in.append(frozen)
        if cut.at_input:
            first = module.get_submodule(cut.first)
            hooks.append(first.register_forward_pre_hook(lambda _, arguments: (features, *arguments[1:])))
        yield
    finally:
        for frozen in stood_in:
            del frozen.forward  # the class's own again
        for hook in hooks:
            hook.remove()


def find_cut(
    module: nn.Module,
    frozen: Sequence[str],
    trained: Sequence[str],
    images: torch.Tensor,
    set_modes: Callable[[], None],
) -> Cut:
    """The cut between `frozen` subtrees and `trained` layers (paths) of a model, proved on `images` (N, C, H, W).

    `set_modes` puts the model in its training mode. The cut lies at the input of the first trained module, or, where
    something random comes in between (dropout), at the output of the last frozen one.

    Raises:
        NoCut: frozen and trained modules take turns, or the tail does not give what the whole model gives.
    """
    order, shapes = _trace(module, frozen, trained, images)
    first_trained = next((place for place, path in enumerate(order) if path in set(trained)), None)
    if first_trained is None:
        raise NoCut("no trained module was reached in a forward pass")
    late = [path for path in order[first_trained:] if path in set(frozen)]
    if late:
        raise NoCut(f"{late[0]} is frozen and computed after {order[first_trained]}, which trains")
    ran = order[:first_trained]
    if not ran:
        raise NoCut("no frozen module comes before the first one that trains")
    reason = ""
    for at_input in (True, False):
        for expands in (False, True):
            cut = Cut(
                tuple(ran),
                tuple(shapes[path] for path in ran),
                ran[-1],
                order[first_trained],
                at_input,
                expands,
            )
            reason = _difference(module, cut, images, set_modes)
            if not reason:
                return cut
    raise NoCut(reason)


def _trace(
    module: nn.Module, frozen: Sequence[str], trained: Sequence[str], images: torch.Tensor
) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """Paths in the order of their first call, and what each frozen one gives for one image."""
    order: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []

    def watch(path: str) -> None:
        def note(_: nn.Module, arguments: Any, output: Any) -> None:
            if path in order:
                raise NoCut(f"{path} is computed twice")
            order.append(path)
            if path in set(frozen):
                if not isinstance(output, torch.Tensor) or len(output) != len(images):
                    raise NoCut(f"{path} gives something else than one tensor per image")
                shapes[path] = tuple(output.shape[1:])

        hooks.append(module.get_submodule(path).register_forward_hook(note))

    for path in (*frozen, *trained):
        watch(path)
    module.eval()
    try:
        with torch.inference_mode():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return order, shapes


def _difference(module: nn.Module, cut: Cut, images: torch.Tensor, set_modes: Callable[[], None]) -> str:
    """Why the tail is not the rest of the model; empty if it is, to rounding, in both modes."""
    devices = [images.device] if images.device.type == "cuda" else []
    tail = Tail(module, cut, tuple(images.shape[1:]))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        features = prefix_features(module, cut, images).clone()
        for change_mode in (module.eval, set_modes):
            outputs = []
            for whole in (True, False):
                with torch.random.fork_rng(devices), torch.no_grad():
                    torch.manual_seed(0)
                    change_mode()
                    # The code behind the cut may work in place.
                    outputs.append(module(images) if whole else tail(features.clone()))
            if outputs[0].shape != outputs[1].shape or not torch.allclose(
                outputs[0], outputs[1], rtol=1e-3, atol=1e-4
            ):
                return f"cut at the {cut.name}, the model gives something else"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return f"cut at the {cut.name}, the model cannot be run: {str(error).splitlines()[0][:120]}"
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return ""
