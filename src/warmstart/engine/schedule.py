"""Learning rate as a pure function of the step and a small recorded state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from warmstart.config.schema import OptimConfig
from warmstart.config.values import Duration

_DEFAULT_GAMMA = {"step": 0.5, "exponential": 0.95, "plateau": 0.95}
_PLATEAU_THRESHOLD = 1e-4  # relative gain in val loss that counts, as torch's ReduceLROnPlateau


@dataclass(frozen=True)
class Schedule:
    """`shape(step)` is the share of a group's rate in force at optimizer step `step` (counted from 0).

    All groups share the shape, so their ratios stay as planned; `floor` is min_lr / lr. A rescue lowers the whole
    of it, warmup and floor too. So does the warmup of a stage, which is not that of the run.
    """

    kind: str
    total_steps: int
    warmup_steps: int
    steps_per_epoch: int
    floor: float
    gamma: float
    drop_every: int
    stage_warmup_steps: int = 0

    def shape(
        self, step: int, plateau_factor: float = 1.0, rescue_factor: float = 1.0, stage_step: int = 0
    ) -> float:
        """`stage_step` is the step at which the present stage began; the first one is warmed up by --warmup alone."""
        since = step - stage_step
        is_warm = stage_step == 0 or since >= self.stage_warmup_steps
        ramp = 1.0 if is_warm else (since + 1) / (self.stage_warmup_steps + 1)
        return rescue_factor * ramp * self._planned(step, plateau_factor)

    def _planned(self, step: int, plateau_factor: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = step - self.warmup_steps
        # As torch's T_max: the floor is where a step after the last would stand, so that none is spent at rate 0.
        progress = min(1.0, done / (self.total_steps - self.warmup_steps))
        if self.kind == "cosine":
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "linear":
            return self.floor + (1 - self.floor) * (1 - progress)
        if self.kind == "step":
            return max(self.floor, self.gamma ** (done // self.drop_every))
        if self.kind == "exponential":
            return max(self.floor, self.gamma ** (done // self.steps_per_epoch))
        if self.kind == "plateau":
            return max(self.floor, plateau_factor)
        return 1.0


def make_schedule(optim: OptimConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    gamma = (
        optim.scheduler_gamma
        if optim.scheduler_gamma is not None
        else _DEFAULT_GAMMA.get(optim.scheduler, 1.0)
    )
    drop_every = (optim.scheduler_step or Duration(10, "epochs")).steps(steps_per_epoch)
    floor = optim.min_lr / optim.lr
    warmup = warmup_steps(optim.warmup, total_steps, steps_per_epoch)
    of_stage = optim.stage_warmup.steps(steps_per_epoch) if optim.stage_warmup else 0
    return Schedule(optim.scheduler, total_steps, warmup, steps_per_epoch, floor, gamma, drop_every, of_stage)


def warmup_steps(warmup: Duration | None, total_steps: int, steps_per_epoch: int) -> int:
    """Steps of warmup: epochs, steps, or a share of the run; never the whole run."""
    if warmup is None:
        return 0
    steps = round(warmup.amount * total_steps) if warmup.unit == "share" else warmup.steps(steps_per_epoch)
    return min(steps, total_steps - 1)


@dataclass(frozen=True)
class Plateau:
    """State of the plateau schedule: `observe` gives the next state after a validation."""

    factor: float = 1.0
    best: float = math.inf
    num_bad: int = 0

    def observe(self, val_loss: float, gamma: float, patience: int) -> Plateau:
        if val_loss < self.best * (1 - _PLATEAU_THRESHOLD):
            return replace(self, best=val_loss, num_bad=0)
        if self.num_bad + 1 > patience:
            return replace(self, factor=self.factor * gamma, num_bad=0)
        return replace(self, num_bad=self.num_bad + 1)
