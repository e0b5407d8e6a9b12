"""One optimizer step: a window of micro-batches, weighted by items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from warmstart.console import log
from warmstart.data.batches import Batch
from warmstart.engine.distributed import SOLO, World
from warmstart.engine.lessons.penalty import Penalty
from warmstart.engine.opening.captions import Captions
from warmstart.inference.inputs import Inputs
from warmstart.inference.memory import AtOnce, within_memory
from warmstart.tasks.task import Objective


class Lessons(Protocol):
    """Losses beside the objective's, whose own weight is `hard`; see engine/lessons/lessons.py."""

    names: tuple[str, ...]
    hard: float

    def watch(self) -> AbstractContextManager[None]:
        """Around the forward pass that the call is about."""

    def __call__(
        self, batch: Batch, given: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """(L,): the sums over the items, each with its weight."""


class LaneStep(NamedTuple):
    """What a batch of one of several tasks goes through, and what its outputs cost."""

    part: nn.Module
    objective: Objective


@dataclass(frozen=True)
class Arithmetic:
    """How a step computes: the autocast type (None: float32), the clipping norm, and fp16's gradient scaler.

    `may_weigh_nothing`: a window can hold nothing but classes of weight 0, so its weight must be looked at.
    `statistics` are the buffers that move with the batches; the processes keep their mean.
    `penalty` is of the weights alone: its gradient is added once per step. `lessons` give other losses of each
    batch; their sums are divided by the same weight, or where targets `weigh` (their weight, their number) something
    else than their number, by that: a teacher knows no class weights.
    `captions` gives the texts of a batch's images, of which each is then the target of its own.
    `whole` is the number of images of an episode, which is trained on as a whole or not at all.
    `lanes` are those of several tasks, by the number of a batch's task.
    """

    precision: torch.dtype | None = None
    clip: float | None = None
    scaler: torch.amp.GradScaler | None = None
    may_weigh_nothing: bool = False
    world: World = SOLO
    statistics: tuple[torch.Tensor, ...] = ()
    penalty: Penalty | None = None
    lessons: Lessons | None = None
    weigh: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    captions: Captions | None = None
    whole: int = 1
    lanes: tuple[LaneStep, ...] = ()

    @property
    def fewest(self) -> int:
        """Items that a micro-batch must have: norm layers cannot learn from one."""
        return max(self.whole, 2 if self.statistics else 1)


def make_scaler(precision: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler | None:
    """fp16 gradients underflow unscaled; bf16 and float32 need no scaler.

    Losses here are sums over items, so the scale starts lower than torch's, which is meant for means.
    """
    return torch.amp.GradScaler(device.type, init_scale=2.0**10) if precision == torch.float16 else None


class Sums(NamedTuple):
    """Over the items of a window, on the device: of the loss, of its weights, and (L,) of the lessons."""

    loss: torch.Tensor
    weight: torch.Tensor
    taught: torch.Tensor


class WindowResult(NamedTuple):
    """Sums over a window as tensors on the device: reading them is left to whoever can afford the wait."""

    loss_sum: torch.Tensor
    weight: torch.Tensor
    grad_norm: torch.Tensor
    taught_sums: (
        torch.Tensor
    )  # (L,) of the lessons, divided by `weight` too; (0,) of a window that is passed over


def train_window(
    module: nn.Module,
    batches: Iterable[Batch],
    inputs: Inputs,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    arithmetic: Arithmetic,
    at_once: AtOnce | None = None,
) -> WindowResult:
    """Accumulate sum(loss) / sum(weight) over the whole window, clip, and step.

    The division comes after the last micro-batch of the last process, when the window's weight is known.
    So 4 x 8 images, or two processes with 16 each, equal 1 x 32 to rounding, and a short last window is
    not discounted, as a mean of means would do.
    A window of no weight changes nothing: neither momentum nor decay moves the weights then.

    Raises:
        UserError: out of memory with one image (two where norms learn); until then batches are halved.
    """
    factor = None
    if arithmetic.lessons is not None and arithmetic.weigh is not None:
        batches = list(batches)  # `within_memory` keeps them anyway
        factor = _weight_per_item(batches, next(module.parameters()).device, arithmetic)

    def compute(pieces: Iterable[Batch]) -> Sums:
        return _accumulate(module, pieces, inputs, objective, optimizer, arithmetic, factor)

    sums = within_memory(compute, batches, at_once or AtOnce(), arithmetic.fewest)
    return _take_step(optimizer, sums, arithmetic)


def pass_over(batches: Iterable[Batch], device: torch.device) -> WindowResult:
    """A window that is not trained on: its batches are consumed, and it weighs nothing."""
    for _ in batches:
        pass
    nothing = torch.zeros((), device=device)
    return WindowResult(nothing, nothing, nothing, nothing.new_zeros(0))


def _weight_per_item(batches: Sequence[Batch], device: torch.device, arithmetic: Arithmetic) -> torch.Tensor:
    """The mean weight of the items of a window in all processes: what divides the sums divides it out again."""
    assert arithmetic.weigh is not None, "asked for only where items have weights"
    sums = torch.zeros(2, device=device)
    for batch in batches:
        if len(batch) >= arithmetic.fewest:
            targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
            sums += torch.stack(arithmetic.weigh(targets))
    arithmetic.world.add_up([sums])
    return sums[0] / sums[1].clamp_min(1)


def _accumulate(
    module: nn.Module,
    batches: Iterable[Batch],
    inputs: Inputs,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    arithmetic: Arithmetic,
    factor: torch.Tensor | None = None,
) -> Sums:
    """Fresh gradients of sum(loss) over the batches, with the sums of losses and weights.

    `factor` is that of the lessons.
    """
    precision, scaler, lessons = arithmetic.precision, arithmetic.scaler, arithmetic.lessons
    device = next(module.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    loss_sum, weight = torch.zeros((), device=device), torch.zeros((), device=device)
    taught_sums = torch.zeros(0 if lessons is None else len(lessons.names), device=device)
    for batch in batches:
        if len(batch) < arithmetic.fewest:
            # Without any item: a window has fewer images than there are processes. The order leaves none alone.
            if len(batch):
                log.warning(
                    "one image is left of a micro-batch whose others cannot be read, and norm layers learn nothing "
                    "from one: it is left out as well"
                    if arithmetic.whole == 1
                    else "an episode is left out: some of its images cannot be read"
                )
            continue
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            given = inputs(batch.images)
            part, cost = arithmetic.lanes[batch.task] if arithmetic.lanes else (module, objective)
            with nullcontext() if lessons is None else lessons.watch():
                if arithmetic.captions is None:
                    outputs = part(given)
                else:
                    outputs, targets = (
                        part(given, arithmetic.captions(batch)),
                        torch.arange(len(batch), device=device),
                    )
            taught = None if lessons is None else lessons(batch, given, outputs, targets)
            if taught is not None and factor is not None:
                taught = taught * factor
        batch_loss, batch_weight = cost(outputs, targets)
        total = batch_loss
        if lessons is not None and taught is not None:
            total = lessons.hard * batch_loss + taught.sum()
            taught_sums += taught.detach()
        (total if scaler is None else scaler.scale(total)).backward()
        loss_sum += batch_loss.detach()
        weight += batch_weight
    return Sums(loss_sum, weight, taught_sums)


def _take_step(optimizer: torch.optim.Optimizer, sums: Sums, arithmetic: Arithmetic) -> WindowResult:
    """Gradients of sums to those of the mean over all processes, clipped; then the optimizer's step."""
    scaler = arithmetic.scaler
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _add_up(parameters, sums, arithmetic)
    loss_sum, weight, taught_sums = sums
    nothing = torch.zeros_like(loss_sum)
    if arithmetic.may_weigh_nothing and float(weight) == 0:
        return WindowResult(nothing, weight, nothing, torch.zeros_like(taught_sums))
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:  # none of the window's images could be read
        return WindowResult(nothing, weight, nothing, torch.zeros_like(taught_sums))
    if scaler is not None:
        scaler.unscale_(optimizer)
    if arithmetic.penalty is not None:
        arithmetic.penalty.add_gradients(weight)  # which divides everything below
    grad_norm = nn.utils.get_total_norm(gradients) / weight
    # Division and clipping in one pass over the gradients; torch's clip_grad_norm_ has the same 1e-6.
    factor = 1 / weight
    if arithmetic.clip is not None:
        factor *= torch.clamp(arithmetic.clip / (grad_norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, factor)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)  # leaves out the steps whose scaled gradients were too large for fp16
        scaler.update()
    return WindowResult(loss_sum, weight, grad_norm, taught_sums)


def _add_up(parameters: list[nn.Parameter], sums: Sums, arithmetic: Arithmetic) -> None:
    """Replace the sums of this process's items by those of all processes; alone, nothing happens."""
    world = arithmetic.world
    if world.size == 1:
        return
    # A process without an item in this window has no gradients; the others' must not be left out for that.
    for parameter, is_used in zip(
        parameters, world.any_of([p.grad is not None for p in parameters]), strict=True
    ):
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    world.add_up([*(p.grad for p in parameters if p.grad is not None), *sums])
    world.average(arithmetic.statistics)
