"""Carry out a plan on a model, one stage at a time, and prove that frozen parts stayed as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import nn

from warmstart.adapt.plan import Plan, decays
from warmstart.records import Block


@dataclass(frozen=True)
class Group:
    """Parameters that share a rate and a decay; `names` and `parameters` run in parallel."""

    block: str
    lr: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def apply_stage(module: nn.Module, plan: Plan, stage: int) -> tuple[Group, ...]:
    """Switch gradients on for exactly the parameters that train in `stage`, and return their groups.

    A block with decay gives two groups: its matrices, and its biases and norms without decay.
    """
    parameters = dict(module.named_parameters())
    groups = []
    for row in plan.rows:
        trains = row.trains_in(stage)
        for name in (*row.trainable, *row.held):
            parameters[name].requires_grad_(trains and name in row.trainable)
            if not parameters[name].requires_grad:
                parameters[name].grad = None
        if not trains:
            continue
        for decay in (row.weight_decay, 0.0) if row.weight_decay else (0.0,):
            names = tuple(
                name
                for name in row.trainable
                if not row.weight_decay or decays(name, tuple(parameters[name].shape)) == (decay > 0)
            )
            if names:
                groups.append(
                    Group(
                        row.name,
                        plan.rate(row, stage),
                        decay,
                        names,
                        tuple(parameters[name] for name in names),
                    )
                )
    return tuple(groups)


def set_modes(module: nn.Module, plan: Plan, blocks: Sequence[Block], stage: int) -> None:
    """Training mode, except for blocks that are frozen in `stage` and norms that are held.

    Called after every `train()` or `eval()` of the loop: torch would otherwise switch frozen BatchNorm
    layers back to updating their statistics without a word.
    """
    module.train()
    for block in blocks:
        row = plan.row(block.name)
        paths: Sequence[str] = ()
        if not row.trains_in(stage):
            paths = (*block.modules, *block.norms)
        elif row.norms == "held":
            paths = block.norms
        for path in paths:
            module.get_submodule(path).eval()


def live_norms(plan: Plan, blocks: Sequence[Block], stage: int) -> tuple[str, ...]:
    """Norm layers whose running statistics move in `stage`."""
    return tuple(
        norm
        for block in blocks
        for norm in block.norms
        if plan.row(block.name).trains_in(stage) and plan.row(block.name).norms == "train"
    )


def live_statistics(
    module: nn.Module, plan: Plan, blocks: Sequence[Block], stage: int
) -> tuple[torch.Tensor, ...]:
    """The running means and variances that move in `stage`."""
    buffers = dict(module.named_buffers())
    names = (
        f"{norm}.{kind}"
        for norm in live_norms(plan, blocks, stage)
        for kind in ("running_mean", "running_var")
    )
    return tuple(buffers[name] for name in names)


def frozen_hash(module: nn.Module, plan: Plan, blocks: Sequence[Block], stage: int) -> str:
    """sha256 over every parameter and buffer that must not change in `stage`."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    digest = sha256()
    for block in blocks:
        row = plan.row(block.name)
        if not row.trains_in(stage):
            names = (*block.parameters, *block.buffers)
        elif row.mode == "lora":  # nothing but adapters moves, and weights in 4 bits are buffers
            names = (*row.held, *block.buffers)
        else:
            held_norms = tuple(f"{norm}." for norm in block.norms) if row.norms == "held" else ()
            names = (
                *row.held,
                *(name for name in block.buffers if name.startswith(held_norms) and held_norms),
            )
        for name in names:
            digest.update(name.encode())
            digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
