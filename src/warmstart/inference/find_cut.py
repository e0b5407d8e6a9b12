"""Where a model can be cut behind its frozen part, and the proof that the tail is the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from warmstart.inference.cut import Cut, NoCut, Slot, Tail, changed, parts, prefix_features, standing_in

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError)
_NUM_FOLLOWED = 2  # images whose way through the tail is followed


def find_cut(
    module: nn.Module,
    frozen: Sequence[str],
    trained: Sequence[str],
    images: torch.Tensor,
    set_modes: Callable[[], None],
) -> Cut:
    """The cut between `frozen` subtrees and `trained` layers (paths) of a model, proved on `images` (N, C, H, W).

    `set_modes` puts the model in its training mode. The cut lies at the input of the first trained module where
    everything passes there, or else, or where something random comes in between (dropout), at those outputs of
    frozen modules that reach the model's outputs by no other frozen module.

    Raises:
        NoCut: frozen and trained modules take turns, or the tail does not give what the whole model gives.
    """
    frozen = _called(module, frozen)
    whole = _wholes(module, frozen)
    given = _trace(module, {*frozen, *whole, *trained}, images)
    order = list(given)
    position = next((place for place, path in enumerate(order) if path in set(trained)), None)
    if position is None:
        raise NoCut("no trained module was reached in a forward pass")
    late = [path for path in order[position:] if path in set(frozen)]
    if late:
        raise NoCut(f"{late[0]} is frozen and computed after {order[position]}, which trains")
    ran = {path: _template(path, given[path], len(images)) for path in order[:position] if path in frozen}
    if not ran:
        raise NoCut("no frozen module comes before the first one that trains")
    reason = ""
    fewer = images[:-1] if len(images) > 1 else images
    expected = [_run(module, fewer, module.eval), _run(module, images, set_modes)]
    for units in _unit_sets(ran, whole, given, order[:position], len(images)):
        for cut in _cuts(module, units, given, order[position], images):
            reason = _difference(module, cut, images, expected, set_modes)
            if not reason:
                return cut
    raise NoCut(reason)


def _called(module: nn.Module, paths: Sequence[str]) -> list[str]:
    """Paths with the items of lists, which have no forward pass of their own, in their place."""
    found = []
    for path in paths:
        part = module.get_submodule(path)
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            found += _called(module, [f"{path}.{name}" for name, _ in part.named_children()])
        else:
            found.append(path)
    return found


def _wholes(module: nn.Module, frozen: Sequence[str]) -> list[str]:
    """Modules around frozen ones, all of whose parameters are in these: a whole encoder."""
    around = {path[:place] for path in frozen for place, letter in enumerate(path) if letter == "."}
    inside = tuple(f"{path}." for path in frozen)

    def is_frozen(path: str) -> bool:
        names = (f"{path}.{name}" for name, _ in module.get_submodule(path).named_parameters())
        return all(name.startswith(inside) for name in names)

    return sorted(path for path in around if is_frozen(path))


def _trace(module: nn.Module, paths: set[str], images: torch.Tensor) -> dict[str, Any]:
    """What each of these modules gives, in the order in which they finish."""
    given: dict[str, Any] = {}
    hooks = []

    def watch(path: str) -> None:
        def note(_: nn.Module, arguments: Any, output: Any) -> None:
            if path in given:
                raise NoCut(f"{path} is computed twice")
            given[path] = output

        hooks.append(module.get_submodule(path).register_forward_hook(note))

    for path in paths:
        watch(path)
    module.eval()
    try:
        with torch.inference_mode():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _template(path: str, output: Any, num: int) -> Any:
    """What a module gives, with slots for tensors. Raises NoCut where it is not one row per image."""

    def slot(tensor: torch.Tensor) -> Slot:
        if not tensor.ndim or len(tensor) != num or not tensor.is_floating_point():
            raise NoCut("a tensor has another form")
        return Slot(tuple(tensor.shape[1:]), kept=False)

    try:
        return changed(output, slot)
    except NoCut as no:
        raise NoCut(f"{path} gives something else than one tensor per image: {no}") from no


def _unit_sets(
    ran: dict[str, Any], whole: Sequence[str], given: dict[str, Any], order: Sequence[str], num: int
) -> Iterator[dict[str, Any]]:
    """What stands in: the largest modules that are frozen whole, or each frozen one by itself."""
    usable = {}
    for path in (path for path in order if path in whole):
        try:
            usable[path] = _template(path, given[path], num)
        except NoCut:  # its parts will do
            continue
    tops = {path for path in (*usable, *ran) if not any(path.startswith(f"{top}.") for top in usable)}
    both = {**ran, **usable}
    if not tops <= ran.keys():
        yield {path: both[path] for path in order if path in tops}
    yield ran


def _cuts(
    module: nn.Module, units: dict[str, Any], given: dict[str, Any], first: str, images: torch.Tensor
) -> Iterator[Cut]:
    """The cuts that may be right, the smallest features first."""
    outputs = {path: given[path] for path in units}
    marks = iter(_reach(module, outputs, images, None))
    kept = tuple(changed(o, lambda slot: Slot(slot.shape, next(marks))) for o in units.values())
    if not any(slot.kept for output in kept for slot in parts(output)):
        raise NoCut("nothing that is frozen reaches what trains")
    if not any(_reach(module, outputs, images, first)):
        for expands in (False, True):
            yield Cut(tuple(units), tuple(units.values()), first, True, expands)
    for expands in (False, True):
        yield Cut(tuple(units), kept, first, False, expands)


def _reach(
    module: nn.Module, outputs: dict[str, Any], images: torch.Tensor, beside: str | None
) -> list[bool]:
    """For each tensor of `outputs`: whether the model's outputs depend on it when these modules compute nothing.

    `beside`: by another way than this module's input. It is whether autograd finds a way.
    """
    leaves: list[torch.Tensor] = []

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        leaves.append(tensor[:_NUM_FOLLOWED].detach().clone().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    handed = {path: changed(output, leaf) for path, output in outputs.items()}
    hooks = []
    if beside is not None:
        cut_off = module.get_submodule(beside).register_forward_pre_hook
        hooks.append(cut_off(lambda _, arguments: (arguments[0].detach(), *arguments[1:])))
    module.eval()
    try:
        with torch.enable_grad(), standing_in(module, handed):
            total = module(images[:_NUM_FOLLOWED]).sum()
        if not total.requires_grad:
            return [False] * len(leaves)
        return [gradient is not None for gradient in torch.autograd.grad(total, leaves, allow_unused=True)]
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise NoCut(f"the model cannot be followed: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _difference(
    module: nn.Module,
    cut: Cut,
    images: torch.Tensor,
    expected: Sequence[torch.Tensor],
    set_modes: Callable[[], None],
) -> str:
    """Why the tail is not the rest of the model; empty if it is, to rounding, in both modes."""
    tail = Tail(module, cut, tuple(images.shape[1:]))
    try:
        features = prefix_features(module, cut, images).clone()
        for wanted, change_mode in zip(expected, (module.eval, set_modes), strict=True):
            # The code behind the cut may work in place.
            found = _run(tail, features[: len(wanted)].clone(), change_mode)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
                return f"cut at the {cut.name}, the model gives something else"
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        return f"cut at the {cut.name}, the model cannot be run: {first_line(error)}"
    return ""


def _run(part: nn.Module, inputs: torch.Tensor, change_mode: Callable[[], object]) -> torch.Tensor:
    """Outputs, with the same random numbers each time; statistics that move in training are put back."""
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), buffers_kept(part):
        torch.manual_seed(0)
        change_mode()
        outputs: torch.Tensor = part(inputs)
        return outputs


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """While it lasts buffers may move; afterwards they are what they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
