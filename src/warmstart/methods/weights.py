"""Arithmetic on whole sets of weights, and the statistics that BatchNorm needs afterwards.

A state is a state dict: name -> tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def between(start: State, tuned: State, alpha: float, kept: Collection[str] = ()) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha tuned, computed in float64 (Wortsman et al. 2022, WiSE-FT).

    Counters, and the names in `kept`, are those of `tuned`. Both ends are exact: alpha 0 is `start`, 1 `tuned`.
    """
    return {
        name: tensor.clone()
        if name in kept or not tensor.is_floating_point()
        else torch.lerp(start[name].double(), tensor.double(), alpha).to(tensor.dtype)
        for name, tensor in tuned.items()
    }


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of several states, in float64 (Izmailov et al. 2018); counters are the last one's."""
    assert states, "an average of nothing"
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[-1].items()
    }


def running_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by the plain mean over these batches of inputs (Izmailov et al. 2018).

    Only the norms are in training mode meanwhile: dropout would change the variances that they see (Li et al. 2019).
    Batches of one image are passed over. The module is in evaluation mode afterwards.
    """
    norms = running_norms(module)
    before = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            if len(batch) > 1:
                module(batch)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    module.eval()
