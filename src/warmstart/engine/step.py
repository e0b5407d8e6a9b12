"""One optimizer step: a window of micro-batches, weighted by items."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from warmstart.data.batches import Batch
from warmstart.inference.inputs import InputBuffer

Objective = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class WindowResult(NamedTuple):
    """Sums over a window as tensors on the device: reading them is left to whoever can afford the wait."""

    loss_sum: torch.Tensor
    weight: torch.Tensor
    grad_norm: torch.Tensor


def train_window(
    module: nn.Module,
    batches: Iterable[Batch],
    inputs: InputBuffer,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    precision: torch.dtype | None = None,
    clip: float | None = None,
) -> WindowResult:
    """Accumulate sum(loss) / sum(weight) over the whole window, clip, and step.

    The division comes after the last micro-batch, when the window's weight is known. So 4 x 8 images
    equal 1 x 32 to rounding, and a short last window is not discounted, as a mean of means would do.
    """
    device = next(module.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), device=device)
    weight = torch.zeros((), device=device)
    for batch in batches:
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            outputs = module(inputs(batch.images))
        batch_loss, batch_weight = objective(outputs, targets)
        batch_loss.backward()
        loss_sum += batch_loss.detach()
        weight += batch_weight
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Targets may all have class weight 0; their gradients are 0 then, and must not become 0 / 0.
    torch._foreach_div_(gradients, weight.clamp(min=torch.finfo(weight.dtype).tiny))
    grad_norm = nn.utils.get_total_norm(gradients, foreach=True)
    if clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grads_with_norm_(parameters, clip, grad_norm, foreach=True)
    optimizer.step()
    return WindowResult(loss_sum, weight, grad_norm)
