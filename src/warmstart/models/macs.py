"""Multiply-adds (MACs) of a model: what one image costs, whatever the machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from warmstart.models.build import BuiltModel
from warmstart.models.task_heads import called


def count_macs(module: nn.Module, images: Tensor) -> int:
    """Multiply-adds of one forward pass: those of matrix products and convolutions, half of torch's count of FLOPs."""
    return int(counted(module, images).get_total_flops()) // 2


def counted(module: nn.Module, images: Tensor) -> FlopCounterMode:
    """A forward pass, with its floating-point operations by module."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels are not counted
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter


def macs_per_image(built: BuiltModel) -> int:
    """Of the model as it answers, for one image of its size; modes of its modules stay as they were."""
    size = built.preprocessing
    device = next(built.module.parameters()).device
    modes = {part: part.training for part in built.module.modules()}
    found = count_macs(
        called(built, built.module.eval()), torch.zeros(1, size.num_channels, *size.image_size, device=device)
    )
    for part, is_training in modes.items():
        part.training = is_training
    return found
