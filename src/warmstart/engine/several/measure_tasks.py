"""Measuring a model of several tasks: each as if it were alone, then all of them together."""

from __future__ import annotations

from typing import Any

from torch import nn

from warmstart.console import log
from warmstart.engine.feed import Feed
from warmstart.engine.job import Job, Lane
from warmstart.engine.measure import keep_predictions, measure, write_eval_row
from warmstart.engine.several.lanes import combined
from warmstart.engine.several.task_feed import TaskFeed
from warmstart.engine.state import TrainState
from warmstart.records import RETAIN
from warmstart.run import layout


def measure_all(
    job: Job, state: TrainState, weights: nn.Module, feed: Feed | TaskFeed
) -> dict[str, dict[str, Any]]:
    """Metrics by split, as `measure` gives them; of several tasks the combined ones, and theirs as TASK.SPLIT."""
    if isinstance(feed, Feed):
        return measure(job, state, weights, feed)
    found = {lane.name: measure(job.of(lane), state, weights, feed.of(lane)) for lane in job.trained_lanes}
    rows: dict[str, dict[str, Any]] = {}
    for split in ("train", "val", "test"):
        of_split = {name: measured[split] for name, measured in found.items() if split in measured}
        if len(of_split) < len(job.trained_lanes):
            continue
        rows[split] = combined(job, of_split)
        num = sum(len(lane.dataset.splits[split]) for lane in job.trained_lanes)
        write_eval_row(job, state, split, num, rows[split])
    for lane in job.lanes:
        if not lane.trained:
            found[lane.name] = {RETAIN: _measure_kept(job, state, weights, feed, lane)}
    return rows | {
        layout.of_task(split, name): row
        for name, measured in found.items()
        for split, row in measured.items()
    }


def kept_split(lane: Lane) -> str:
    """What a task that must not be forgotten is measured on: its test images, else val, else train."""
    return next(name for name in ("test", "val", "train") if name in lane.dataset.splits)


def _measure_kept(
    job: Job, state: TrainState, weights: nn.Module, feed: TaskFeed, lane: Lane
) -> dict[str, Any]:
    """What is left of an old task; predictions of the start, the best and this step are kept."""
    own, samples = job.of(lane), lane.dataset.splits[kept_split(lane)]
    outputs = feed.of(lane).outputs(weights, samples, RETAIN)
    row = lane.task.evaluate(outputs, samples.targets)
    write_eval_row(own, state, RETAIN, len(samples), row)
    keep_predictions(own, RETAIN, samples, outputs, state.step)
    steps = (job.pace.first_step, state.best_step, state.step)
    needed = {layout.predictions_name(RETAIN, step, lane.name) for step in steps if step is not None}
    if job.world.is_main:
        for path in (job.run / layout.PREDICTIONS).glob(f"{layout.of_task(RETAIN, lane.name)}@*"):
            if path.name not in needed:
                path.unlink()
    return row


def log_tasks(job: Job, state: TrainState, rows: dict[str, dict[str, Any]]) -> None:
    """A line for each task: what it is worth on val, or what is left of it."""
    for lane in job.lanes:
        split = "val" if lane.trained else RETAIN
        row = rows.get(layout.of_task(split, lane.name))
        if row is not None:
            told = lane.task.headline(row)
            log.info("step %d/%d  %s of %s  %s", state.step, job.pace.total_steps, split, lane.name, told)
