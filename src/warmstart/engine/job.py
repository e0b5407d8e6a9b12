"""Everything a loop needs, decided once: the frozen record between wiring (train.py) and looping (loop.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from warmstart.adapt.plan import Plan
from warmstart.config.schema import Config
from warmstart.data.batches import View
from warmstart.data.dataset import Dataset
from warmstart.data.order import training_windows
from warmstart.engine.distributed import World
from warmstart.engine.schedule import Schedule
from warmstart.inference.cut import Cut
from warmstart.models.build import BuiltModel
from warmstart.tasks.task import Task


@dataclass(frozen=True)
class Pace:
    """Durations of a run in optimizer steps (and one in seconds)."""

    steps_per_epoch: int
    total_steps: int
    eval_every: int
    save_every: int
    log_every: int
    max_seconds: float | None


@dataclass(frozen=True)
class Job:
    """One training run, complete: where, what, on which data, how fast, on which device."""

    run: Path
    config: Config
    dataset: Dataset
    built: BuiltModel
    plan: Plan
    schedule: Schedule
    task: Task
    select_by: str  # the metric that chooses the best checkpoint
    pace: Pace
    train_view: View
    workers: int
    eval_batch_size: int
    world: World
    device: torch.device
    precision: torch.dtype | None
    cut: Cut | None = None  # where the frozen prefix ends whose features are kept
    views: int = 1  # augmented views per image that are kept then; epoch e shows view e % views

    def windows(self, epoch: int) -> list[list[np.ndarray]]:
        """The optimizer steps of an epoch, over all processes."""
        config, targets = self.config, self.dataset.splits["train"].targets
        return training_windows(targets, config.data, config.optim.accumulate, config.train.seed, epoch)
