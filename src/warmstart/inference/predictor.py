"""The one path of validation, evaluate and predict: a model over batches, what is kept of them on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from warmstart.data.batches import Batch
from warmstart.inference.inputs import Inputs
from warmstart.inference.memory import AtOnce, within_memory

Statistics = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def predict_outputs(
    module: nn.Module,
    batches: Iterable[Batch],
    inputs: Inputs,
    precision: torch.dtype | None = None,
    on_batch: Callable[[int], None] | None = None,
    statistics: Statistics | None = None,
    at_once: AtOnce | None = None,
) -> np.ndarray:
    """Outputs as float32 (N, classes), in the order of the batches. Leaves the module in eval mode.

    `on_batch` gets the number of images done so far. Where outputs are as large as images, `statistics` makes a
    row of numbers for each image of outputs and targets, on the device; the result is then these, (N, numbers).
    Batches that do not fit into memory are divided, down to `at_once.fewest` images; the parts' outputs are the same to
    rounding.

    Raises:
        UserError: not even so few images fit into memory.
    """
    module.eval()
    device = next(module.parameters()).device
    outputs: list[torch.Tensor] = []
    at_once = at_once or AtOnce()
    done = 0

    def compute(pieces: Iterable[Batch]) -> list[torch.Tensor]:
        return [_kept(module(inputs(piece.images)), piece, device, statistics) for piece in pieces]

    with torch.inference_mode(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        for batch in batches:
            outputs += within_memory(compute, [batch], at_once, at_once.fewest)
            done += len(batch.images)
            if on_batch is not None:
                on_batch(done)
    return torch.cat(outputs).numpy() if outputs else np.zeros((0, 0), np.float32)


def _kept(
    found: torch.Tensor, batch: Batch, device: torch.device, statistics: Statistics | None
) -> torch.Tensor:
    """What is kept of a batch's outputs, on the CPU."""
    if statistics is not None:
        return statistics(found.float(), torch.from_numpy(batch.targets).to(device)).cpu()
    # Always a copy: an output may share memory with the input, which the next batch overwrites.
    return found.to("cpu", torch.float32, copy=True)
