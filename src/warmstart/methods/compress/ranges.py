"""Where a model can be quantised, and the numbers that pass there: one traced forward pass, then calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.models.quantised import grid_of, has_activation, is_norm

_KINDS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Places:
    """`layers` are as `models.quantised.quantise` takes them, path to point; `left` those that stay in floating point.

    `rectified` are points whose numbers below 0 nobody sees, since a ReLU takes their place.
    """

    layers: dict[str, str]
    left: tuple[str, ...]
    rectified: frozenset[str]


@dataclass
class _Trace:
    """Who made and who took which tensor of a forward pass; all are held, so that none has another's identity.

    A tensor that was written over since (`x += shortcut`) has another version, and is nobody's any more.
    """

    made_by: dict[tuple[int, int], str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)  # of convolutions
    rectified: set[str] = field(default_factory=set)
    held: list[Any] = field(default_factory=list)

    def before(self, path: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        maker = self.made_by.get(_identity(given[0])) if given else None
        if maker is None:
            return
        if is_norm(layer):
            self.norms[maker] = path
        elif isinstance(layer, (nn.ReLU, nn.ReLU6)) and layer.inplace:
            self.rectified.add(maker)

    def after(self, path: str, layer: nn.Module, found: Any) -> None:
        self.calls[path] = self.calls.get(path, 0) + 1
        if not isinstance(layer, nn.Identity):
            self.made_by[_identity(found)] = path
            self.held.append(found)


def _identity(tensor: Any) -> tuple[int, int]:
    return id(tensor), tensor._version if isinstance(tensor, Tensor) else 0


def find_places(module: nn.Module, example: Tensor, keep: Iterable[str]) -> Places:
    """Every convolution and linear layer that is called once in a forward pass of `example`, (N, C, h, w).

    `keep` are paths that stay in floating point.
    """
    trace = _Trace()
    parts = {p: m for p, m in module.named_modules() if has_activation(m) or not list(m.children())}

    def watch(path: str, part: nn.Module) -> list[Any]:
        return [
            part.register_forward_pre_hook(lambda layer, given: trace.before(path, layer, given)),
            part.register_forward_hook(lambda layer, _, found: trace.after(path, layer, found)),
        ]

    _watched(module, [example], [hook for path, part in parts.items() for hook in watch(path, part)])
    kept = set(keep)
    of_kind = {path: part for path, part in parts.items() if isinstance(part, _KINDS)}
    layers = {
        path: _point(path, part, trace)
        for path, part in of_kind.items()
        if type(part) in _KINDS and trace.calls.get(path) == 1 and path not in kept
    }
    norms = {path: point for path, point in layers.items() if point not in ("", path)}
    if not _read_alone(module, example, norms):
        layers |= {
            path: path for path, norm in norms.items() if not _read_alone(module, example, {path: norm})
        }
    inside = {path for path, part in parts.items() if has_activation(part) and isinstance(part.act, nn.ReLU)}
    left = tuple(path for path in of_kind if path not in layers)
    return Places(layers, left, frozenset(trace.rectified | inside))


def _point(path: str, layer: nn.Module, trace: _Trace) -> str:
    if isinstance(layer, nn.Linear):
        return ""
    norm = trace.norms.get(path)
    return norm if norm is not None and trace.calls[norm] == 1 else path


def _read_alone(module: nn.Module, example: Tensor, norms: Mapping[str, str]) -> bool:
    """Whether nothing but its norm sees what a convolution gives: if only the norms get it, and the others something
    else, the model's output is the same."""
    kept: dict[str, Tensor] = {}

    def hide(path: str) -> Any:
        def change(_: nn.Module, __: Any, found: Tensor) -> Tensor:
            kept[path] = found
            return found + 1

        return module.get_submodule(path).register_forward_hook(change)

    def show(path: str, norm: str) -> Any:
        return module.get_submodule(norm).register_forward_pre_hook(lambda *_: (kept[path],))

    hooks = [hook for path, norm in norms.items() for hook in (hide(path), show(path, norm))]
    return torch.equal(_watched(module, [example], hooks), _watched(module, [example], ()))


def find_grids(module: nn.Module, places: Places, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The grids of a module that is not quantised yet, by the names of their buffers, from the smallest and largest
    numbers that batches (N, C, h, w) bring."""
    seen: dict[str, tuple[float, float]] = {}

    def see(name: str) -> Callable[[Tensor], None]:
        def widen(x: Tensor) -> None:
            low, high = (float(side) for side in torch.aminmax(x.detach()))
            before = seen.get(name, (low, high))
            seen[name] = min(low, before[0]), max(high, before[1])

        return widen

    hooks: list[Any] = []
    for path, point in places.layers.items():
        hooks.append(_on_input(module.get_submodule(path), see(f"{path}.input_grid")))
        if not point:
            continue
        part, watch = module.get_submodule(point), see(f"{point}.output_grid")
        # What goes into the first part behind timm's norm is what comes out of the norm.
        hooks.append(_on_input(part.drop, watch) if has_activation(part) else _on_output(part, watch))  # type: ignore[arg-type]
    _watched(module, batches, hooks)
    return {
        name: grid_of(0.0 if name.removesuffix(".output_grid") in places.rectified else low, high)
        for name, (low, high) in seen.items()
    }


def _on_input(part: nn.Module, watch: Callable[[Tensor], None]) -> Any:
    return part.register_forward_pre_hook(lambda _, given: watch(given[0]))


def _on_output(part: nn.Module, watch: Callable[[Tensor], None]) -> Any:
    return part.register_forward_hook(lambda _, __, found: watch(found))


@torch.no_grad()
def _watched(module: nn.Module, batches: Iterable[Tensor], hooks: Iterable[Any]) -> Tensor:
    """Forward passes in evaluation mode, after which the hooks are gone; the last output."""
    was_training, found = module.training, torch.empty(0)
    module.eval()
    for batch in batches:
        found = module(batch)
    module.train(was_training)
    for hook in hooks:
        hook.remove()
    return found
