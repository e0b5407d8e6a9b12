"""Gradients of a model before it is trained, to prove something of it: nothing is left changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from warmstart.inference.find_cut import buffers_kept


def gradients_of(
    compute: Callable[[], torch.Tensor],
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    set_modes: Callable[[], None],
    seed: int = 0,
) -> tuple[torch.Tensor | None, ...]:
    """Of the outputs that `compute` gives, each times a number of its own, for each of these parameters of `module`.

    A plain sum is the same whatever the model computes where softmax or a norm comes last. With one seed the random
    numbers are the same each time; afterwards buffers and the generators are what they were.
    """
    device = next(module.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
        buffers_kept(module),
    ):
        torch.manual_seed(seed)
        set_modes()
        outputs = compute()
        total = (outputs * torch.randn_like(outputs)).sum()
        if not total.requires_grad:  # nothing of the model leads to it
            return (None,) * len(parameters)
        return torch.autograd.grad(total, parameters, allow_unused=True)
