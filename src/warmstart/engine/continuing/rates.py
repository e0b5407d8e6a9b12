"""What becomes of the learning rate where a run goes on counting its parent's steps: decided and said, never silent."""

from __future__ import annotations

from dataclasses import dataclass

from warmstart.config.io import from_dict
from warmstart.console import log
from warmstart.engine.continuing.foreign import Foreign
from warmstart.engine.continuing.parent import Parent
from warmstart.engine.job import Job
from warmstart.engine.schedule import Schedule, make_schedule

_SAMPLES = 1000  # of a schedule, to see whether it has fallen


@dataclass(frozen=True)
class Rates:
    """The rate at the kept step by both schedules; `last` was in force before it, `highest` ever (None: unknown)."""

    step: int
    last: float
    old: float
    new: float
    highest: float | None

    @property
    def climbs_back(self) -> bool:
        fell = self.highest is None or self.last < self.highest * (1 - 1e-9)
        return fell and self.new > self.last * (1 + 1e-9)


def rates_at_start(parent: Parent, job: Job) -> Rates | None:
    """None where the parent does not say what its rate was."""
    step, lr = job.pace.first_step, job.config.optim.lr
    if parent.run is None or parent.saved is None:
        return _foreign_rates(parent.foreign, job)
    optim, pace = from_dict(parent.run.config).optim, parent.run.resolved["pace"]
    before = make_schedule(optim, pace["total_steps"], pace["steps_per_epoch"])
    state = parent.saved.state

    def rate(schedule: Schedule, base: float, at: int) -> float:
        return base * schedule.shape(at, state.plateau.factor, state.rescue_factor)

    shown = range(0, step, max(1, step // _SAMPLES))
    return Rates(
        step=step,
        last=rate(before, optim.lr, max(0, step - 1)),
        old=rate(before, optim.lr, step),
        new=rate(job.schedule, lr, step),
        highest=max((optim.lr * before.shape(at) for at in shown), default=optim.lr),
    )


def _foreign_rates(foreign: Foreign | None, job: Job) -> Rates | None:
    if foreign is None or foreign.rate is None:
        return None
    new = job.config.optim.lr * job.schedule.shape(job.pace.first_step, foreign.plateau_factor)
    return Rates(job.pace.first_step, foreign.rate, foreign.rate, new, None)


def announce_rates(rates: Rates, job: Job) -> None:
    log.info(
        "rate at step %d: %.3g under the old schedule, %.3g under the new", rates.step, rates.old, rates.new
    )
    if rates.climbs_back:
        log.warning(
            "the rate climbs back at step %d, from %.3g to %.3g: %s is computed anew over %d steps. To go on low: "
            "--scheduler none --lr %.3g; for a schedule that begins anew and says so: --keep optimizer",
            rates.step,
            rates.last,
            rates.new,
            job.schedule.kind,
            job.pace.total_steps,
            rates.last,
        )
