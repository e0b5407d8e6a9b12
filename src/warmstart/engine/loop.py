"""The one loop. It knows steps, windows of batches, an objective and a plan; never a method or a file format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from warmstart.adapt.apply import apply_stage, frozen_hash, live_statistics, set_modes
from warmstart.console import progress
from warmstart.data.batches import Batch
from warmstart.engine.background import Background
from warmstart.engine.checkpoint import Saved, save_checkpoint
from warmstart.engine.clock import EVALUATION, SAVING, Clock
from warmstart.engine.compiled import CompiledPart, forget_compiled
from warmstart.engine.episodes import episodic
from warmstart.engine.feed import Feed
from warmstart.engine.gradients import NUM_LOOKS, GradientWatch
from warmstart.engine.job import Job
from warmstart.engine.learner import Learner
from warmstart.engine.lessons.lessons import hint_groups, make_hints, make_lessons
from warmstart.engine.lessons.remedies import make_penalty
from warmstart.engine.measure import log_validation, update_best
from warmstart.engine.metric_writer import MetricWriter
from warmstart.engine.optimizer import (
    make_optimizer,
    restore_by_name,
    set_rates,
    state_by_name,
)
from warmstart.engine.recomputed import recomputed
from warmstart.engine.several.lanes import lane_steps, looks_needed
from warmstart.engine.several.measure_tasks import log_tasks, measure_all
from warmstart.engine.several.task_feed import TaskFeed, make_feed
from warmstart.engine.stages import advance_stage, announce_stage
from warmstart.engine.state import OUT_OF_TIME, TrainState
from warmstart.engine.step import Arithmetic, WindowResult, pass_over, train_window
from warmstart.inference.inputs import Inputs
from warmstart.tasks.objectives import on_device, weight_of


def run_loop(
    job: Job,
    state: TrainState,
    ema: AveragedModel | None,
    scaler: GradScaler | None,
    saved: Saved | None,
    interrupted: Callable[[], bool],
    clock: Clock,
) -> None:
    """Train from `state` to the end of the run, or until `interrupted()`; results are in the run directory.

    `saved` is the checkpoint that `state` is of, whose weights the model has already. The state is changed in place,
    and saved whole; `clock` counts where the time goes.

    Raises:
        NotFinite: a loss, a gradient or the weights; what was done since `state.good_step` is to be undone.
        UserError: the disk is full; the last checkpoint is intact.
    """
    module, plan, pace, blocks = job.built.module, job.plan, job.pace, job.built.blocks
    carried, hints = None if saved is None else saved.optimizer, make_hints(job, saved)
    feed = make_feed(job, clock, state)
    is_compiled = job.config.train.compile
    arithmetic = _arithmetic(job, scaler)
    started = time.perf_counter() - state.seconds
    with (
        MetricWriter(job, state, arithmetic.penalty) as rows,
        progress("training", pace.total_steps) as bar,
        Background() as background,
    ):
        means = _Means(rows, feed, clock, background)
        # A run may have ended without saying so, as when its process was killed at the very end.
        done = state.step >= pace.total_steps or state.stop_reason is not None
        # Of a child with other stages, or one that counts on from a file's epochs.
        advance_stage(job, state, {})
        while not done:
            # ---- Stage: the blocks that train now, in one optimizer; what is known about them comes along by name
            stage = state.stage
            groups = (*apply_stage(module, plan, stage), *hint_groups(job, hints, stage))
            feed.enter(stage)
            if is_compiled:
                forget_compiled()
            trained_part = CompiledPart(module, feed.part) if is_compiled else feed.part(module)
            trained_part = episodic(job, module, recomputed(job, stage, module, trained_part))
            learner = Learner(make_optimizer(job.config.optim, groups, job.device), ema, scaler, hints)
            optimizer = learner.optimizer
            if carried is not None:
                restore_by_name(optimizer, *carried)
            if stage > 0:
                announce_stage(job, state)
            is_fresh = state.frozen_stage is None  # no checkpoint was ever written from this state
            if state.frozen_stage != stage:
                state.frozen_stage, state.frozen_hash = stage, frozen_hash(module, plan, blocks, stage)
            statistics = live_statistics(module, plan, blocks, stage)
            lessons = make_lessons(job, module, feed.part, stage, hints)
            lanes = lane_steps(job, module)
            arithmetic = replace(arithmetic, statistics=statistics, lessons=lessons, lanes=lanes)
            watch = GradientWatch(optimizer, module, looks_needed(job, NUM_LOOKS))

            # ---- The start (step 0, or where a parent's count goes on) is measured before anything is trained
            if is_fresh:
                _validate(job, state, learner, means)
                # Waited for: a disk that refuses the first checkpoint should cost nothing.
                _save(job, state, learner, means, goes_on=False)

            # ---- Steps
            for window in _windows(job, state, means):
                result, rates = _step(job, state, learner, trained_part, window, feed.inputs, arithmetic)
                rows.add(result, rates)
                watch.look()
                state.advance(pace.steps_per_epoch)
                before, state.seconds = state.seconds, time.perf_counter() - started
                is_save_time = pace.is_save_time(before, state.seconds)
                done = _after_step(job, state, learner, means, (interrupted(), is_save_time))
                bar.update(state.step, rows.text)
                if done:
                    break

            # ---- End of stage: frozen means frozen, trained means trained
            now = frozen_hash(module, plan, blocks, stage)
            assert now == state.frozen_hash, "a frozen parameter or buffer has changed during training"
            watch.report()
            carried = state_by_name(optimizer)


def _arithmetic(job: Job, scaler: GradScaler | None) -> Arithmetic:
    """How steps compute, with what keeps the weights near the start."""
    return Arithmetic(
        job.precision,
        job.config.optim.clip,
        scaler,
        # Also where every pixel of a window may be without a class.
        may_weigh_nothing=any(
            min(task.class_weights or (1.0,)) == 0 or task.statistics is not None
            for task in (job.task, *(lane.task for lane in job.lanes))
        ),
        world=job.world,
        penalty=make_penalty(job),
        weigh=_weigher(job),
        captions=job.captions,
        whole=job.batch_size if job.config.meta.is_on else 1,
    )


def _weigher(job: Job) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None:
    """Gives the weight and the number of targets; None where both are the same, as labels' are whatever they weigh."""
    weights = job.task.class_weights
    if weights is None or job.built.multi_label or not job.config.task.ce_weight:
        return None
    by_class = on_device(weights, job.device, torch.float32)
    ignore = -100 if job.dataset.ignore is None else job.dataset.ignore

    def weigh(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight_of(targets, by_class, ignore), weight_of(targets, torch.ones_like(by_class), ignore)

    return weigh


def _step(
    job: Job,
    state: TrainState,
    learner: Learner,
    part: nn.Module,
    window: Iterator[Batch],
    inputs: Inputs,
    arithmetic: Arithmetic,
) -> tuple[WindowResult, list[float]]:
    """One optimizer step at the rates in force, which it returns; a window that failed twice is passed over."""
    shape = job.schedule.shape(state.step, state.plateau.factor, state.rescue_factor, state.stage_step)
    rates = set_rates(learner.optimizer, shape)
    if state.is_left_out:
        return pass_over(window, job.device), rates
    parts = part, window, inputs, job.objective(state.step), learner.optimizer, arithmetic
    result = train_window(*parts, state.trained_at_once)
    if learner.ema is not None:
        learner.ema.update_parameters(job.built.module)
    return result, rates


class _Means(NamedTuple):
    """What the loop works with besides the model and its state."""

    rows: MetricWriter
    feed: Feed | TaskFeed
    clock: Clock
    background: Background


def _windows(job: Job, state: TrainState, means: _Means) -> Iterator[Iterator[Batch]]:
    """The windows of one stage from where `state` stands; each must be consumed before the next is asked for."""
    stage = state.stage
    while state.stage == stage:
        windows = job.windows(state.epoch)[state.window :]
        with closing(means.feed.training(windows, state.epoch)) as batches:
            # After the feed: features are computed in evaluation mode.
            set_modes(job.built.module, job.plan, job.built.blocks, stage)
            for window in windows:
                if state.stage != stage:
                    return
                yield means.clock.waiting(islice(batches, len(window)))


def _after_step(
    job: Job, state: TrainState, learner: Learner, means: _Means, asked: tuple[bool, bool]
) -> bool:
    """Rows, validation, checkpoint, in this order: a checkpoint holds what was measured. Whether to end here.

    `asked` says whether a signal wants the run to stop, and whether the clock wants a checkpoint.
    """
    means.background.check()
    pace, step, rows = job.pace, state.step, means.rows
    out_of_time = pace.max_seconds is not None and state.seconds >= pace.max_seconds
    # Clocks and signals differ between processes; what follows must not.
    stopping, is_save_time, out_of_time = job.world.any_of([*asked, out_of_time])
    done = step >= pace.total_steps or out_of_time
    if done or step % pace.log_every == 0:
        rows.train_row(state)
    if state.window == 0:
        rows.epoch_row(state)
    metrics: dict[str, float] = {}
    is_best = False
    if done or pace.is_eval_step(step):
        rows.collect(state)  # ends here if a step failed: nothing is measured or saved then
        metrics, is_best = _validate(job, state, learner, means)
        set_modes(job.built.module, job.plan, job.built.blocks, state.stage)
    advance_stage(job, state, metrics)
    if out_of_time and step < pace.total_steps:
        state.stop_reason = OUT_OF_TIME
    done = done or state.stop_reason is not None
    is_planned = done or is_best or is_save_time or pace.is_save_step(step)
    if is_planned or stopping:
        rows.collect(state)
        _save(job, state, learner, means, is_planned, goes_on=not (done or stopping))
    return done or stopping


def _save(
    job: Job,
    state: TrainState,
    learner: Learner,
    means: _Means,
    is_planned: bool = True,
    goes_on: bool = True,
) -> None:
    with means.clock.part(SAVING):
        state.unreadable = means.feed.unreadable()
        save_checkpoint(job, state, learner, means.background, is_planned, goes_on)


def _validate(job: Job, state: TrainState, learner: Learner, means: _Means) -> tuple[dict[str, float], bool]:
    """Measure, choose, and decide whether to stop early; val's metrics, and whether this step is the new best."""
    with means.clock.part(EVALUATION):
        measured = measure_all(job, state, learner.weights_to_use(job.built.module), means.feed)
    metrics = measured.get("val", {})
    is_best = update_best(job, state, metrics)
    means.rows.validation(state, measured)
    log_tasks(job, state, measured)
    log_validation(job, state, measured, is_best)
    if metrics and state.step > job.pace.first_step:
        gamma, patience = job.schedule.gamma, job.config.optim.scheduler_patience
        state.plateau = state.plateau.observe(metrics["loss"], gamma, patience)
        state.stage_plateau = state.stage_plateau.observe(metrics["loss"], 0.5, patience)
    if job.config.train.patience is not None and state.num_bad >= job.config.train.patience:
        state.stop_reason = f"no new best in {job.config.train.patience} validations"
    return metrics, is_best
