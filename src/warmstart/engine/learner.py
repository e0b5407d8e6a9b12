"""What a step changes besides the model's weights; with them it is what a checkpoint must hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from warmstart.engine.lessons.hints import Hints


@dataclass(frozen=True)
class Learner:
    """The optimizer of the present stage, the averaged weights, fp16's gradient scaler, and the projections of hints
    (None: not used)."""

    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None = None
    scaler: GradScaler | None = None
    hints: Hints | None = None

    def weights_to_use(self, module: nn.Module) -> nn.Module:
        """The weights that are measured and saved: the averaged ones where they are kept."""
        return module if self.ema is None else self.ema.module
