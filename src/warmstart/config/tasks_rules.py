"""Rules for the section `tasks`. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from warmstart.config.places import absolute, short_name
from warmstart.config.schema import Config, DataConfig, leaves
from warmstart.config.tasks_section import TasksConfig
from warmstart.config.tasks_values import UNCERTAINTY
from warmstart.errors import UserError, closest, listing

# What says how the labels of --data are read, and is not for another data set.
_OF_OWN_DATA = (
    *("group", "mix", "label_columns", "masks", "mask_classes", "ignore", "mask_remap", "mask_colours"),
    "flip_pairs",
)
# Path of a setting -> why several tasks do not have it.
_REFUSED = {
    "data.mixup": "it pairs images of one data set",
    "data.cutmix": "it pairs images of one data set",
    "data.mix": "a data set of the same classes is no task of its own",
    "data.mix_classes": "each task has classes of its own",
    "data.mine": "it weighs the images of one data set",
    "retain.replay": "name the old task among --tasks to train on its images",
    "retain.ewc": "Fisher information is of one head; --retain.l2sp holds the shared weights",
    "retain.lwf": "the answers are of one head; --retain.l2sp holds the shared weights",
    "lora.rank": "adapters of several heads are not written",
    "task.margin_method": "a margin is of one head",
    "task.margin_ramp": "a margin is of one head",
    "task.positive": "it is of one task of two classes",
    "task.threshold": "it is of one task of two classes",
    "train.compile": "the compiled code would change with every task",
    "train.gradient_checkpointing": "what is computed again was proved for one head only",
    "text.head": "texts are of one set of classes",
    "text.captions": "texts are of one data set",
    "output.output_style": "its files are of one task of two classes",
    "distill.teacher": "its answers are of one head",
    "meta.method": "an episode is of one data set",
}


def is_multitask(config: Config) -> bool:
    return bool(config.tasks.data) or config.tasks.first is not None


def first_name(config: Config) -> str:
    """What the task of --data is called."""
    return config.tasks.first or task_name_of(config.data.path or "data")


def task_name_of(place: str) -> str:
    """The name of a task whose data lie there."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", short_name(place)).strip("-_") or "data"


def task_names(config: Config) -> tuple[str, ...]:
    return (first_name(config), *(name for name, _ in config.tasks.data))


def task_weights(config: Config) -> dict[str, float] | None:
    """Weight of each task's loss; None: they are learned."""
    given = config.tasks.weights
    if isinstance(given, str):
        return None
    return {name: dict(given).get(name, 1.0) for name in task_names(config)}


def task_shares(config: Config) -> dict[str, float]:
    """Share of each task in what chooses the best step; they add up to 1."""
    given = dict(config.tasks.select) or dict.fromkeys(task_names(config), 1.0)
    total = sum(given.values())
    return {name: given.get(name, 0.0) / total for name in task_names(config)}


def data_of_task(data: DataConfig, path: str) -> DataConfig:
    """The settings of another task's data: what says how labels are read is of --data."""
    fields = DataConfig.model_fields
    return data.model_copy(update={"path": path, **{name: fields[name].default for name in _OF_OWN_DATA}})


def tasks_problems(config: Config) -> list[UserError]:
    if not is_multitask(config):
        return _without_tasks(config.tasks)
    return [*_places(config), *_numbers(config), *_refused(config)]


def _without_tasks(tasks: TasksConfig) -> list[UserError]:
    return [
        UserError(
            f"--tasks.{name} without --tasks", "the other tasks", "name them with --tasks NAME=DATA,..."
        )
        for name in ("weights", "sampling", "select")
        if getattr(tasks, name) != TasksConfig.model_fields[name].default
    ]


def _places(config: Config) -> Iterator[UserError]:
    first = first_name(config)
    if first in dict(config.tasks.data):
        yield UserError(
            f"two tasks are called {first!r}: that of --data, and one of --tasks",
            "a name for each task",
            "--tasks.first NAME names the task of --data",
        )
    paths = [config.data.path or "", *(path for _, path in config.tasks.data)]
    places = [absolute(path) for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            yield UserError(
                f"--tasks {config.tasks.data[number - 1][0]}={paths[number]} is the data set of another task",
                "a data set for each task",
                "several labels of the same images are --label-columns, one task",
            )


def _numbers(config: Config) -> Iterator[UserError]:
    names = task_names(config)
    for setting in ("weights", "select"):
        given = getattr(config.tasks, setting)
        if given == UNCERTAINTY:
            continue
        if unknown := [name for name, _ in given if name not in names]:
            yield UserError(
                f"--tasks.{setting}: no task is called {unknown[0]!r}",
                listing(names),
                closest(unknown[0], names),
            )
        total = sum(dict(given).get(name, float(setting == "weights" or not given)) for name in names)
        if not unknown and total == 0:
            yield UserError(
                f"--tasks.{setting} {','.join(f'{name}={number:g}' for name, number in given)}: they sum to zero",
                "at least one task with a weight above 0",
            )


def _refused(config: Config) -> Iterator[UserError]:
    flags = {leaf.path: leaf.flag for leaf in leaves()}
    for path, why in _REFUSED.items():
        section, name = path.split(".")
        value: Any = getattr(getattr(config, section), name)
        if value != type(getattr(config, section)).model_fields[name].default:
            yield UserError(
                f"--{flags[path]} is not for several tasks: {why}",
                "one task",
                "leave it out",
            )
    weights = config.task.class_weights
    if weights is not None and weights.strip().lower() != "balanced":
        yield UserError(
            f"--class-weights {weights} names classes of one task, and there are several",
            "--class-weights balanced, which weighs the classes of each task",
            "leave it out",
        )
