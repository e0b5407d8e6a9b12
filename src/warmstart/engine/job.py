"""Everything a loop needs, decided once: the frozen record between wiring (train.py) and looping (loop.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from warmstart.adapt.plan import Plan
from warmstart.config.schema import Config
from warmstart.data.batches import View
from warmstart.data.dataset import Dataset
from warmstart.engine.schedule import Schedule
from warmstart.models.build import BuiltModel
from warmstart.tasks.classification import Classification


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
    task: Classification
    pace: Pace
    train_view: View
    workers: int
    eval_batch_size: int
    device: torch.device
    precision: torch.dtype | None
