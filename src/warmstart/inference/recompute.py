"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory in a step, for a second forward pass.

Of a chosen module only what goes in is kept; what it computes on the way is computed again when the backward pass
needs it. The model itself stays as it is: names, hooks, saving, averaging and evaluation know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from warmstart.errors import UserError
from warmstart.inference.find_cut import FAILURES, buffers_kept, first_line
from warmstart.inference.gradients import gradients_of

_LEAST_LAYERS = 2  # with parameters: of a single layer the input is all that is kept anyway
# A residual block of two convolutions and their norms; a convolution and its norm alone are no block.
_LAYERS_OF_BLOCK = 4
_ROUNDING = 1e-3  # of the largest gradient of a tensor: kernels of a GPU may add up in another order


class Recomputed(nn.Module):
    """The `part` of a model that trains, in whose backward pass these modules compute once more.

    Only with gradients, and only where a module is in training mode. Dropout draws the same numbers again, and
    running statistics move once, with the first pass.
    """

    def __init__(self, part: nn.Module, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.part = part
        # Made once: to a compiler, a function made anew is a new function.
        self._forwards = [(module, partial(_recomputed, module, module.forward)) for module in modules]
        # Of a module whose `forward` is its own and not its class's.
        self._own = [vars(module).get("forward") for module in modules]

    def forward(self, *inputs: Any) -> Any:
        try:
            for module, forward in self._forwards:
                module.forward = forward
            return self.part(*inputs)
        finally:
            for (module, _), own in zip(self._forwards, self._own, strict=True):
                vars(module).pop("forward", None)
                if own is not None:
                    module.forward = own


def _recomputed(module: nn.Module, forward: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*arguments, **settings)
    # DenseNet appends to its list of features, and a second pass would find more in it.
    arguments = tuple(list(given) if isinstance(given, list) else given for given in arguments)
    if torch.compiler.is_compiling():  # compiled code recomputes values alone; what moves, moves once
        return checkpoint(forward, *arguments, use_reentrant=False, **settings)
    contexts = partial(_contexts, module)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **settings)


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), buffers_kept(module)


def find_recomputed(
    module: nn.Module,
    subtrees: Sequence[str],
    images: torch.Tensor,
    set_modes: Callable[[], None],
    name: str,
) -> tuple[str, ...]:
    """Paths of the modules to compute again: the blocks of these subtrees, proved on `images` (N, C, H, W).

    `set_modes` puts the model in its training mode; `name` is the model's.

    Raises:
        UserError: there is none, or the gradients that come of it are others.
    """
    called: set[str] = set()
    with _watched(module, subtrees, called):
        expected = _gradients(module, module, images, set_modes)
    paths = tuple(path for subtree in subtrees for path in _units(module, subtree, called))
    if not paths:
        raise UserError(
            f"--gradient-checkpointing: no block of {name} that trains is a module of several layers, so there is "
            "nothing to compute again",
            "a model of residual or transformer blocks, of which some train",
            "leave it out; a smaller --batch-size with --accumulate needs less memory too",
        )
    modules = [module.get_submodule(path) for path in paths]
    try:
        found = _gradients(Recomputed(module, modules), module, images, set_modes)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise _refusal(name, f"cannot compute its blocks a second time: {first_line(error)}") from error
    if not all(map(_is_same, expected, found)):
        raise _refusal(name, "gives other gradients where its blocks are computed a second time")
    return paths


def _refusal(name: str, reason: str) -> UserError:
    return UserError(f"--gradient-checkpointing: {name} {reason}", fix="leave it out for this model")


def _units(module: nn.Module, path: str, called: set[str]) -> Iterator[str]:
    """The outermost modules at or below `path` that are called as such, and hold no row of blocks.

    Of a row each block is a unit by itself: what is computed again is then in memory for one block at a time.
    """
    part = module.get_submodule(path)
    if path in called and _num_layers(part) >= _LEAST_LAYERS and not _holds_row(path, part, called):
        yield path
        return
    for name, _ in part.named_children():
        yield from _units(module, f"{path}.{name}", called)


def _holds_row(path: str, part: nn.Module, called: set[str]) -> bool:
    """Whether two blocks lie side by side in it, at any depth."""
    for inner, around in part.named_modules(prefix=path):
        blocks = (
            f"{inner}.{name}" in called and _num_layers(child) >= _LAYERS_OF_BLOCK
            for name, child in around.named_children()
        )
        if sum(blocks) > 1:
            return True
    return False


def _num_layers(part: nn.Module, is_whole: bool = True) -> int:
    """Modules with parameters of their own; what lies inside of one (an adapter of a layer) belongs to it."""
    has_own = next(part.parameters(recurse=False), None) is not None
    if has_own and not is_whole:
        return 1
    return has_own + sum(_num_layers(child, is_whole=False) for child in part.children())


def _note(called: set[str], path: str, *_: Any) -> None:
    called.add(path)


@contextmanager
def _watched(module: nn.Module, subtrees: Sequence[str], called: set[str]) -> Iterator[None]:
    """While it lasts the paths of modules in these subtrees that are called join `called`."""
    layers = {
        path: layer
        for subtree in subtrees
        for path, layer in module.get_submodule(subtree).named_modules(prefix=subtree)
    }
    hooks = [layer.register_forward_hook(partial(_note, called, path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(
    part: nn.Module, module: nn.Module, images: torch.Tensor, set_modes: Callable[[], None]
) -> tuple[torch.Tensor | None, ...]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return gradients_of(partial(part, images), module, parameters, set_modes)


def _is_same(expected: torch.Tensor | None, found: torch.Tensor | None) -> bool:
    if expected is None or found is None:
        return expected is found
    # Where it is not finite, the measurement of the start model says what is wrong.
    if not expected.numel() or not expected.isfinite().all():
        return True
    return float((expected - found).abs().max()) <= _ROUNDING * float(expected.abs().max())
