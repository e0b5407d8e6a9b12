"""Several tasks of one run: what each costs in a step, what all of them are worth together, what is recorded.

The loss of a step is the sum over tasks of weight_t (n_t / n) mean loss_t, with n_t of the step's n images. A mean over
a micro-batch of masks is one over its pixels, so a task of masks does not weigh millions of times as much as one of
labels. Learned weights are those of Kendall, Gal and Cipolla 2018 (equation 10, for classes): with s_t the logarithm of
a variance, a task costs exp(-s_t) loss_t + s_t / 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from warmstart.config.schema import Config, TaskConfig
from warmstart.config.tasks_rules import task_shares, task_weights
from warmstart.data.dataset import Dataset
from warmstart.data.task_windows import longest_wait
from warmstart.engine.job import Job, Lane
from warmstart.engine.opening.open_sources import OpenedTask
from warmstart.engine.step import LaneStep
from warmstart.errors import UserError, closest, listing
from warmstart.models.task_files import LOG_VARIANCES, child_of
from warmstart.models.task_heads import called
from warmstart.records import TASK_HEAD
from warmstart.tasks.task import MASK_SETTINGS, Objective, Task, resolve_metric

COMBINED = "combined"


class TaskCost:
    """(outputs, targets) of a micro-batch of one task -> (n x what it costs on average, n) for its n images.

    `weight` is of the task, `log_variance` (a scalar) where that is learned. Where nothing has a class, both are 0.
    """

    def __init__(
        self, objective: Objective, weight: float | None, log_variance: torch.Tensor | None = None
    ) -> None:
        assert (weight is None) != (log_variance is None), "a weight is given or learned"
        self._objective, self._weight, self._log_variance = objective, weight, log_variance

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, weight = self._objective(outputs, targets)
        num = len(targets) * (weight > 0)
        mean = loss_sum / torch.where(weight > 0, weight, 1)
        if self._weight is not None:
            return num * self._weight * mean, num.to(mean.dtype)
        own = self._log_variance
        assert own is not None, "a weight is given or learned"
        return num * (torch.exp(-own) * mean + own / 2), num.to(mean.dtype)


def lane_steps(job: Job, module: nn.Module) -> tuple[LaneStep, ...]:
    """How a batch of each trained task goes through the module, and what it costs; empty for one task."""
    steps = []
    for lane in job.trained_lanes:
        own = (
            None
            if lane.weight is not None
            else module.get_parameter(f"{LOG_VARIANCES}.{child_of(lane.name)}")
        )
        steps.append(LaneStep(called(lane.built, module), TaskCost(lane.task.objective, lane.weight, own)))
    return tuple(steps)


def learned_weights(job: Job) -> dict[str, float]:
    """exp(-s) of each task whose weight is learned; waits for the device."""
    return {
        f"weight of {lane.name}": math.exp(
            -float(job.built.module.get_parameter(f"{LOG_VARIANCES}.{child_of(lane.name)}").detach())
        )
        for lane in job.trained_lanes
        if lane.weight is None
    }


def looks_needed(job: Job, at_least: int) -> int:
    """Steps after which every task has had its turn for certain: what has no gradient until then learns nothing."""
    if not job.lanes:
        return at_least
    return max(at_least, longest_wait(job.windows(0)) + 1)


def make_lanes(
    config: Config, opened: Sequence[OpenedTask], tasks: Sequence[Task], views: Sequence[Any]
) -> tuple[Lane, ...]:
    """The tasks with their weights and shares; what is kept and not trained has none."""
    weights, shares = task_weights(config), task_shares(config)
    return tuple(
        Lane(
            each.name,
            each.dataset,
            each.built,
            task,
            view,
            None if weights is None else weights.get(each.name, 0.0),
            shares.get(each.name, 0.0),
            each.trained,
            each.settings,
            each.source,
        )
        for each, task, view in zip(opened, tasks, views, strict=True)
    )


def settings_of_task(settings: TaskConfig, dataset: Dataset, has_masks: bool) -> TaskConfig:
    """The section `task` for one of several: what only masks read is for those, where there are some."""
    if dataset.ignore is not None or not has_masks:
        return settings
    fields = TaskConfig.model_fields
    return settings.model_copy(update={name: fields[name].default for name in MASK_SETTINGS})


def combined_metric(asked: str, lanes: Sequence[Lane]) -> str:
    """What `--select-by` looks at. Raises UserError for a metric that a task does not measure."""
    if asked in ("auto", COMBINED):
        return COMBINED
    lanes = [lane for lane in lanes if lane.share]
    common = [name for name in lanes[0].task.metrics if all(name in lane.task.metrics for lane in lanes)]
    if asked not in common:
        lacking = next(lane.name for lane in lanes if asked not in lane.task.metrics)
        raise UserError(
            f"--select-by {asked}: the task {lacking} does not measure it",
            f"combined, or a metric of all tasks: {listing(common)}",
            closest(asked, common) or "leave it out: combined is the mean of each task's main metric",
        )
    for lane in lanes:
        resolve_metric(asked, lane.task)
    return asked


def formula(job: Job) -> str:
    """In words what chooses the best step."""
    terms = [
        f"{lane.share:.3g} x {lane.task.metrics[0] if job.select_by == COMBINED else job.select_by} of {lane.name}"
        for lane in job.trained_lanes
        if lane.share
    ]
    return f"{job.select_by} = {' + '.join(terms)}"


def combined(job: Job, rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of several tasks as one row: means by share of what all measure, and of each one's main metric."""
    lanes = [lane for lane in job.trained_lanes if lane.share and lane.name in rows]
    total = sum(lane.share for lane in lanes)
    names = [
        name for name in ("loss", *lanes[0].task.metrics) if all(name in rows[lane.name] for lane in lanes)
    ]
    found = {
        name: sum(lane.share * rows[lane.name][name] for lane in lanes) / total
        for name in dict.fromkeys(names)
    }
    main = sum(lane.share * rows[lane.name][lane.task.metrics[0]] for lane in lanes) / total
    return {COMBINED: main, **found}


def frozen_heads(lanes: Sequence[OpenedTask]) -> tuple[str, ...]:
    """Blocks of heads that are kept as they are."""
    return tuple(f"{TASK_HEAD}{lane.name}" for lane in lanes if not lane.trained)


def new_parameters(job: Job) -> tuple[str, ...]:
    """Those of a head that was made anew; of several tasks, of each such head, and what is learned of their weights."""
    if not job.lanes:
        return () if job.built.head_change.kind == "kept" else tuple(job.built.blocks[-1].parameters)
    kept = {f"{TASK_HEAD}{lane.name}" for lane in job.lanes if lane.built.head_change.kind == "kept"}
    return tuple(
        name
        for block in job.built.blocks
        for name in block.parameters
        if block.name.startswith(TASK_HEAD) and (block.name not in kept or name.startswith(LOG_VARIANCES))
    )


def lanes_record(job: Job) -> dict[str, Any]:
    """What resolved.json says of several tasks; nothing of one."""
    if not job.lanes:
        return {}
    entries = [
        {
            "name": lane.name,
            "kind": _kind(lane),
            "classes": list(lane.built.classes),
            "trained": lane.trained,
            "weight": lane.weight,
            "share": lane.share,
            "head": asdict(lane.built.head_change),
            "source": lane.source,
            "settings": lane.settings.model_dump(mode="json"),
        }
        for lane in job.lanes
    ]
    return {"tasks": entries, "selected": formula(job)}


def _kind(lane: Lane) -> str:
    assert lane.built.tasks is not None, "one of several tasks"
    head = lane.built.tasks.find(lane.name)
    assert head is not None, f"no head of {lane.name}"
    return head.kind
