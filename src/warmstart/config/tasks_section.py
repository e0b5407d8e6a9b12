"""The section `tasks`: several data sets, each with a head of its own, on one backbone."""

from __future__ import annotations

from pydantic import Field

from warmstart.config.section import Section
from warmstart.config.tasks_values import (
    Sampling,
    TaskName,
    TaskNumbers,
    TaskPlaces,
    TaskSampling,
    TaskWeights,
)


class TasksConfig(Section):
    """Several tasks on one backbone."""

    data: TaskPlaces = Field(
        (),
        description="tasks beside that of --data, NAME=PATH,...: each has a head of its own on one backbone",
    )
    first: TaskName | None = Field(
        None, description="name of the task of --data [default: the name of its folder]"
    )
    weights: TaskWeights = Field(
        (),
        description="weights of the tasks' losses, NAME=NUMBER,... [default: 1 each], or uncertainty: learned",
    )
    sampling: TaskSampling = Field(
        Sampling("proportional", 1.0),
        description="shares of an epoch: proportional (to the images), equal, or temperature=T in between",
    )
    select: TaskNumbers = Field(
        (), description="shares of the tasks in what --select-by looks at, NAME=NUMBER,... [default: equal]"
    )
