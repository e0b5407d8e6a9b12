"""A quadratic penalty that holds weights near where a training began.

`penalty = sum_i (l2sp + ewc F_i) / 2 (w_i - s_i)^2` over the parameters that come from the start weights s, with
F the Fisher information (start.py): L2-SP of Li, Grandvalet and Davoine 2018 (equation 3; a head that is made anew
has no part in it, and --weight-decay stays what it is), and EWC of Kirkpatrick et al. 2017 (equation 3).
"""

from __future__ import annotations

import torch
from torch import nn


class Penalty:
    """The penalty over `held` (parameter, its start value, its Fisher information or None)."""

    def __init__(
        self,
        held: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]],
        l2sp: float = 0.0,
        ewc: float = 0.0,
    ) -> None:
        self._parameters = [parameter for parameter, _, _ in held]
        # In the layout of the parameter: what follows reads them side by side.
        self._starts = [torch.empty_like(p.detach()).copy_(start) for p, start, _ in held]
        self._l2sp, self._ewc = l2sp, ewc
        self._fisher = [torch.empty_like(p.detach()).copy_(f) for p, _, f in held if f is not None]
        assert not ewc or len(self._fisher) == len(held), (
            "EWC needs the Fisher information of every parameter"
        )

    def add_gradients(self, factor: torch.Tensor) -> None:
        """Add `factor` times the penalty's gradient to the gradients; a parameter without one is left alone."""
        rows = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not rows:
            return
        moved = self._moved(rows)
        total = torch._foreach_mul(moved, self._l2sp)
        if self._ewc:
            by_fisher = torch._foreach_mul(moved, [self._fisher[row] for row in rows])
            torch._foreach_add_(total, by_fisher, alpha=self._ewc)
        torch._foreach_mul_(total, factor)
        torch._foreach_add_([self._gradient(row) for row in rows], total)

    def values(self) -> dict[str, float]:
        """The penalty as it is now, by name; waits for the device."""
        moved = self._moved(range(len(self._parameters)))
        squares = torch._foreach_mul(moved, moved)
        found = {}
        if self._l2sp:
            found["l2sp"] = self._l2sp / 2 * sum(float(square.sum()) for square in squares)
        if self._ewc:
            torch._foreach_mul_(squares, self._fisher)
            found["ewc"] = self._ewc / 2 * sum(float(square.sum()) for square in squares)
        return found

    def _moved(self, rows: range | list[int]) -> tuple[torch.Tensor, ...]:
        now = [self._parameters[row].detach() for row in rows]
        return torch._foreach_sub(now, [self._starts[row] for row in rows])

    def _gradient(self, row: int) -> torch.Tensor:
        gradient = self._parameters[row].grad
        assert gradient is not None, "asked for only where there is one"
        return gradient
