"""The feed of several tasks: one of each, and their micro-batches in the order of the epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
from torch import nn

from warmstart.data.batches import Batch
from warmstart.data.task_windows import TaskPlaces
from warmstart.engine.clock import Clock
from warmstart.engine.feed import Feed
from warmstart.engine.job import Job, Lane
from warmstart.engine.state import TrainState
from warmstart.inference.inputs import Inputs


class TaskFeed:
    """Asked as a `Feed` is; `of` gives that of one task."""

    def __init__(self, job: Job, clock: Clock, state: TrainState) -> None:
        self._job = job
        self._feeds = {
            lane.name: Feed(
                job.of(lane), clock, replace(state, unreadable=_below(state.unreadable, f"{lane.name}/"))
            )
            for lane in job.lanes
        }

    def of(self, lane: Lane) -> Feed:
        return self._feeds[lane.name]

    def enter(self, stage: int) -> None:
        for feed in self._feeds.values():
            feed.enter(stage)

    @property
    def inputs(self) -> Inputs:
        """Of all tasks: they share the model's preprocessing."""
        return self.of(self._job.lanes[0]).inputs

    def part(self, module: nn.Module) -> nn.Module:
        """The model; how the batches of each task go through it, engine/several/lanes.py says."""
        return module

    def training(self, windows: Iterable[list[TaskPlaces]], epoch: int) -> Generator[Batch, None, None]:
        """The micro-batches of some windows of an epoch, one after the other, each with the number of its task."""
        order = [micro for window in windows for micro in window]
        with ExitStack() as stack:
            sources = [
                stack.enter_context(closing(self.of(lane).training(_of_task(order, number), epoch)))
                for number, lane in enumerate(self._job.trained_lanes)
            ]
            for micro in order:
                yield replace(next(sources[micro.task]), task=micro.task)

    def unreadable(self) -> dict[str, str]:
        """As that of a feed, with the name of the task in front of each id."""
        return {
            f"{name}/{image}": reason
            for name, feed in self._feeds.items()
            for image, reason in feed.unreadable().items()
        }


def make_feed(job: Job, clock: Clock, state: TrainState) -> Feed | TaskFeed:
    return TaskFeed(job, clock, state) if job.lanes else Feed(job, clock, state)


def _of_task(order: list[TaskPlaces], task: int) -> list[list[np.ndarray]]:
    return [[micro.places] for micro in order if micro.task == task]


def _below(names: dict[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): text for name, text in names.items() if name.startswith(prefix)}
