"""Several tasks in one training: which micro-batches an epoch has, of which task, and which of them make a step.

Everything is a function of (seed, epoch). An epoch has as many places as all tasks together have training images; each
task gets its share of them, cut into micro-batches of its own, which are spread over the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from warmstart.config.schema import Config
from warmstart.data import counters
from warmstart.data.mixture import drawn_places
from warmstart.data.order import epoch_windows
from warmstart.data.samples import Samples


class TaskPlaces(NamedTuple):
    """A micro-batch: the number of its task, and places of that task's images, `index + repeat * N` (order.py)."""

    task: int
    places: np.ndarray


def task_places(config: Config, sizes: Sequence[int]) -> list[int]:
    """Places of each task in an epoch: its share of the images of all tasks, by the largest remainder; at least two.

    `sizes` are their training images.
    """
    total = sum(sizes)
    wanted = np.array(config.tasks.sampling.shares(list(sizes))) * total
    numbers = np.floor(wanted + 1e-9).astype(int)
    missing = total - int(numbers.sum())
    numbers[np.argsort(-(wanted - numbers), kind="stable")[:missing]] += 1
    return [max(2, int(number)) for number in numbers]


def task_windows(config: Config, training: Sequence[Samples], epoch: int) -> list[list[TaskPlaces]]:
    """The optimizer steps of an epoch, each of `accumulate` micro-batches of any tasks; the last has what is left."""
    seed, is_balanced = config.train.seed, config.data.sampler == "balanced"
    numbers = task_places(config, [len(samples) for samples in training])
    batches: list[TaskPlaces] = []
    positions: list[np.ndarray] = []
    for task, (samples, number) in enumerate(zip(training, numbers, strict=True)):
        places = drawn_places(samples.targets, number, is_balanced, seed, epoch, task)
        own = [micro for window in epoch_windows(places, config.data.batch_size, 1) for micro in window]
        batches += [TaskPlaces(task, micro) for micro in own]
        jitter = counters.generator(seed, epoch, counters.TASKS, task).random(len(own))
        positions.append((np.arange(len(own)) + jitter) / len(own))
    order = np.argsort(np.concatenate(positions), kind="stable").tolist()
    size = config.optim.accumulate
    return [[batches[at] for at in order[start : start + size]] for start in range(0, len(order), size)]


def longest_wait(windows: Sequence[Sequence[TaskPlaces]]) -> int:
    """After how many steps at the latest every task has had its turn, from any step of an epoch on."""
    last: dict[int, int] = {}
    longest = 0
    for step, window in enumerate((*windows, *windows)):
        for task in {micro.task for micro in window}:
            longest = max(longest, step - last.get(task, -1))
            last[task] = step
    return longest
