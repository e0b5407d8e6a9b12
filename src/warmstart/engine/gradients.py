"""Trained means trained: every group and every adapter of a stage must have had a gradient, or the run says so."""

from __future__ import annotations

import torch
from torch import nn

from warmstart.console import log
from warmstart.errors import listing
from warmstart.models.adapters.inject import adapted_layer

NUM_LOOKS = 10  # what has had no gradient in so many steps has none


class GradientWatch:
    """Looks at the gradients of the first steps of a stage; the norms stay on the device until it is told of them."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, module: nn.Module, num_looks: int = NUM_LOOKS
    ) -> None:
        self._module, self._num_wanted = module, num_looks
        self._blocks: list[tuple[str, list[torch.Tensor]]] = []  # a block's name, parameters of one group
        self._adapters: dict[str, list[torch.Tensor]] = {}  # by the path of the layer
        for group in optimizer.param_groups:
            rest = []
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if (path := adapted_layer(name)) is None:
                    rest.append(parameter)
                else:  # of A and B, the first has none as long as the second is zero
                    self._adapters.setdefault(path, []).append(parameter)
            self._blocks += [(group["block"], rest)] if rest else []
        self._largest: torch.Tensor | None = None
        self._num_looks = 0

    def look(self) -> None:
        """Take this step's gradients into account; after the last look, tell."""
        if self._num_looks >= self._num_wanted:
            return
        self._num_looks += 1
        parts = [*(part for _, part in self._blocks), *self._adapters.values()]
        norms = torch.stack([_norm(part) for part in parts])
        self._largest = norms if self._largest is None else torch.maximum(self._largest, norms)
        if self._num_looks == self._num_wanted:
            self._tell()

    def silent_blocks(self) -> list[str]:
        """Blocks with a group that had no gradient in any step looked at."""
        return sorted({self._blocks[at][0] for at in self._silent() if at < len(self._blocks)})

    def silent_adapters(self) -> list[str]:
        """Layers whose adapters had no gradient in any step looked at."""
        paths, first = list(self._adapters), len(self._blocks)
        return [paths[at - first] for at in self._silent() if at >= first]

    def report(self) -> None:
        """Tell at the end of a stage that was too short for all looks."""
        if self._num_looks < self._num_wanted:
            self._tell()

    def _silent(self) -> list[int]:
        """Numbers of parts, blocks first."""
        return [] if self._largest is None else (self._largest == 0).nonzero()[:, 0].tolist()

    def _tell(self) -> None:
        for block in self.silent_blocks():
            log.warning(
                "block %s is planned to train but part of it had no gradient in %d steps: nothing is learned there",
                block,
                self._num_looks,
            )
        by_cause: dict[str | None, list[str]] = {}
        for path in self.silent_adapters():
            by_cause.setdefault(zero_scale(self._module, path), []).append(path)
        for cause, paths in by_cause.items():
            log.warning(
                "%d adapters had no gradient in %d steps, nothing is learned there: %s%s",
                len(paths),
                self._num_looks,
                listing(paths, 4),
                "" if cause is None else f": what they give is multiplied by {cause}, which is zero",
            )


def zero_scale(module: nn.Module, path: str) -> str | None:
    """The parameter, all zero, that what the layer at `path` gives may be multiplied by; None: there is none.

    It is of a module that stands behind the layer in one of those around it, or of that one itself, the nearest first.
    Models are made with such scales in residual branches (Goyal et al. 2017, section 5.1), and random weights still
    have them.
    """
    names = path.split(".")
    for depth in reversed(range(len(names))):
        around = module.get_submodule(".".join(names[:depth]))
        children = list(around.named_children())
        place = next(number for number, (name, _) in enumerate(children) if name == names[depth])
        for name, child in (*children[place + 1 :], ("", around)):
            for own, parameter in child.named_parameters(recurse=False):
                if "bias" not in own and not parameter.any():
                    return ".".join(filter(None, (*names[:depth], name, own)))
    return None


def _norm(parameters: list[torch.Tensor]) -> torch.Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    return torch.nn.utils.get_total_norm(gradients).float()
