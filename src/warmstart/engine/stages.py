"""When the next stage of --unfreeze begins: a function of the step, the last validation and a small recorded state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from warmstart.config.io import from_dict
from warmstart.config.unfreezing import PLATEAU, Trigger
from warmstart.console import log
from warmstart.engine.job import Job
from warmstart.engine.schedule import Plateau
from warmstart.engine.state import TrainState
from warmstart.errors import listing
from warmstart.run import layout, writer
from warmstart.run.reader import Run


def advance_stage(job: Job, state: TrainState, metrics: dict[str, float]) -> None:
    """Count the stage that begins after the step at which `state` stands, if one does; once, and for good.

    `metrics` are of a validation at this step, else empty. A plateau or a metric is asked of the stage that is
    running, and so can only begin the next one; a time begins its stage whatever was waited for.
    The run's last step counts as well: a child that goes on from there begins as the longer run would.
    """
    begun = _next(job, state, metrics)
    if begun is None:
        return
    stage, step = begun
    passed = [str(job.plan.stages[number].trigger) for number in range(state.stage + 1, stage)]
    if passed:
        log.warning(
            "--unfreeze %s did not come before step %d: its blocks train from now on", listing(passed), step
        )
    state.stage, state.stage_step, state.stage_plateau = stage, step, Plateau()
    trigger = job.plan.stages[stage].trigger
    row = {"kind": "stage", "step": state.step, "stage": stage, "when": str(trigger), "from_step": step}
    if trigger.metric:
        row[trigger.metric] = metrics[trigger.metric]
    writer.append_row(job.run / layout.METRICS, row)


class _Begun(NamedTuple):
    stage: int
    step: int


def _next(job: Job, state: TrainState, metrics: dict[str, float]) -> _Begun | None:
    stages, per_epoch = job.plan.stages, job.pace.steps_per_epoch
    for number in range(job.plan.last_stage, state.stage, -1):
        step = stages[number].trigger.step(per_epoch)
        if step is not None and step <= state.step:
            return _Begun(number, step)
    following = state.stage + 1
    if following < len(stages) and metrics and _is_met(stages[following].trigger, state, metrics):
        return _Begun(following, state.step)
    return None


def _is_met(trigger: Trigger, state: TrainState, metrics: dict[str, float]) -> bool:
    if trigger.kind == PLATEAU:
        return state.stage_plateau.factor < 1
    if trigger.kind != "metric":
        return False
    value = metrics[trigger.metric]
    return value >= trigger.value if trigger.sign == ">=" else value <= trigger.value


def announce_stage(job: Job, state: TrainState) -> None:
    """Which stage trains from here on, since when, and how fast."""
    plan, stage, warmup = job.plan, state.stage, job.schedule.stage_warmup_steps
    log.info(
        "stage %d of %d (%s) from step %d: %s train, base rate %.3g%s",
        stage + 1,
        len(plan.stages),
        plan.stages[stage].trigger,
        state.stage_step,
        listing(row.name for row in plan.rows if row.trains_in(stage)),
        job.config.optim.lr * plan.stages[stage].factor,
        f" after {warmup} warmup steps" if warmup else "",
    )


def unreached(job: Job, state: TrainState) -> list[str]:
    """What stages that have not trained a single step were waiting for, in words."""
    first = state.stage + (1 if state.stage == 0 or state.stage_step < state.step else 0)
    return [
        f"--unfreeze {stage.trigger} never began: {listing(job.plan.new_blocks(number))} stayed frozen"
        for number, stage in enumerate(job.plan.stages)
        if number >= first
    ]


def has_same_stages(parent: Run | None, job: Job) -> bool:
    """Whether a parent's count of stages means the same in a run that continues it."""
    return parent is not None and from_dict(parent.config).adapt.unfreeze == job.config.adapt.unfreeze


def without_stages(state: TrainState) -> TrainState:
    return replace(state, stage=0, stage_step=0, stage_plateau=Plateau())


def stage_kept(parent: Run | None, state: TrainState, job: Job) -> Iterator[tuple[str, str, str]]:
    """(what, kept or new, how) where a run that continues `parent` has stages."""
    if job.plan.last_stage == 0:
        return
    if has_same_stages(parent, job):
        yield "stage", "kept", f"{state.stage + 1} of {len(job.plan.stages)}, since step {state.stage_step}"
    else:
        yield "stage", "new", "--unfreeze is another one here"
