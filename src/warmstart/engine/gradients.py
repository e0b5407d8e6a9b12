"""Trained means trained: every group of a stage must have had a gradient, or the run says so."""

from __future__ import annotations

import torch

from warmstart.console import log

_NUM_LOOKS = 10  # a group that has had no gradient in so many steps has none


class GradientWatch:
    """Looks at the gradients of the first steps of a stage; the norms stay on the device until the end."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = optimizer.param_groups
        self._largest: torch.Tensor | None = None
        self._num_looks = 0

    def look(self) -> None:
        if self._num_looks >= _NUM_LOOKS:
            return
        self._num_looks += 1
        norms = torch.stack([_norm(group["params"]) for group in self._groups])
        self._largest = norms if self._largest is None else torch.maximum(self._largest, norms)

    def silent_blocks(self) -> list[str]:
        """Blocks with a group that had no gradient in any step looked at."""
        if self._largest is None:
            return []
        norms = self._largest.tolist()
        return sorted(
            {group["block"] for group, norm in zip(self._groups, norms, strict=True) if norm == 0.0}
        )

    def report(self) -> None:
        for block in self.silent_blocks():
            log.warning(
                "block %s is planned to train but part of it had no gradient in %d steps: nothing is learned there",
                block,
                self._num_looks,
            )


def _norm(parameters: list[torch.Tensor]) -> torch.Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    return torch.nn.utils.get_total_norm(gradients).float()
