"""Everything a loop needs, decided once: the frozen record between wiring (train.py) and looping (loop.py)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from warmstart.adapt.plan import Plan
from warmstart.config.schema import SELECTION_METRICS, Config, DataConfig
from warmstart.data.batches import View
from warmstart.data.dataset import Dataset
from warmstart.data.mixture import training_windows
from warmstart.data.samples import Samples
from warmstart.data.task_windows import task_windows
from warmstart.engine.distributed import World
from warmstart.engine.opening.open_sources import OtherSource, Retained
from warmstart.engine.schedule import Schedule
from warmstart.inference.cut import Cut
from warmstart.models.build import BuiltModel
from warmstart.tasks.classification import Classification
from warmstart.tasks.task import Objective, Task

if TYPE_CHECKING:
    from warmstart.engine.lessons.hints import HintPair
    from warmstart.engine.lessons.start import Start
    from warmstart.engine.lessons.teachers import Teachers
    from warmstart.engine.opening.captions import Captions


@dataclass(frozen=True)
class Pace:
    """Durations of a run in optimizer steps (and one in seconds)."""

    steps_per_epoch: int
    total_steps: int
    eval_every: int
    save_every: int  # 0: by time alone
    log_every: int
    max_seconds: float | None
    first_step: int = 0  # what a parent had done where its count goes on
    eval_before: tuple[
        tuple[int, int], ...
    ] = ()  # (until step, interval), one after the other, before `eval_every`
    save_seconds: float | None = None

    def is_eval_step(self, step: int) -> bool:
        """Whether the model is validated after this step; each interval counts from where the one before it ends."""
        start = 0
        for until, interval in self.eval_before:
            if step <= until:
                return (step - start) % interval == 0
            start = until
        return (step - start) % self.eval_every == 0

    def is_save_step(self, step: int) -> bool:
        return self.save_every > 0 and step % self.save_every == 0

    def is_save_time(self, before: float, now: float) -> bool:
        """Whether a multiple of the interval lies between two times, in seconds of the run."""
        every = self.save_seconds
        return every is not None and now // every > before // every

    @property
    def num_evals(self) -> int:
        """Validations of the run, with those before the first and after the last step."""
        return 2 + sum(map(self.is_eval_step, range(self.first_step + 1, self.total_steps)))


@dataclass(frozen=True)
class Bar:
    """What a child run has to beat: the parent's best value of the metric that selects. `step` is the parent's."""

    run: str
    step: int | None
    metric: str
    value: float
    origin: str  # recorded, or measured on this run's val

    def gain(self, value: float) -> float:
        """How much better `value` is; negative where it is worse."""
        return SELECTION_METRICS[self.metric] * (value - self.value)

    @classmethod
    def recorded(cls, resolved: dict[str, Any]) -> Bar | None:
        values = (resolved["parent"] or {}).get("bar")
        return None if values is None else cls(**values)


@dataclass(frozen=True)
class Kept:
    """Features that a stage keeps: of the prefix up to `cut` (None: none), in so many augmented views of an image.

    Epoch e shows view e % views. `answers`: those of teachers to these views are kept as well, or alone.
    """

    cut: Cut | None = None
    views: int = 1
    answers: bool = False


@dataclass(frozen=True, eq=False)
class Lane:
    """One of several tasks: its data, and the shared model as it sees it (`built`).

    `weight` is of its loss (None: learned), `share` of it in the combined metric. One that is not `trained` is measured
    as what must not be forgotten.
    """

    name: str
    dataset: Dataset
    built: BuiltModel
    task: Task
    view: View
    weight: float | None
    share: float
    trained: bool
    settings: DataConfig  # of its data
    source: int | None  # its number among the data sets beside --data


def samples_of(lanes: Iterable[Lane]) -> tuple[Samples, ...]:
    """The training images of each task that is trained."""
    return tuple(lane.dataset.splits["train"] for lane in lanes if lane.trained)


@dataclass(frozen=True)
class Job:
    """One training run, complete: where, what, on which data, how fast, on which device."""

    run: Path
    config: Config
    dataset: Dataset
    built: BuiltModel
    plan: Plan
    schedule: Schedule
    task: Task
    select_by: str  # the metric that chooses the best checkpoint
    pace: Pace
    train_view: View
    workers: int
    eval_batch_size: int
    world: World
    device: torch.device
    precision: torch.dtype | None
    kept: tuple[Kept, ...] = ()  # by stage; empty: nowhere features
    recomputed: tuple[str, ...] = ()  # paths of modules that compute once more in the backward pass
    bar: Bar | None = None  # of a run that continues another one
    sample_weights: np.ndarray | None = None  # float64 (N,): how often each image comes; None: all alike
    sources: tuple[OtherSource, ...] = ()  # data sets beside --data
    retained: Retained | None = None
    start: Start | None = None  # where something holds on to it
    captions: Captions | None = None  # texts of the training images, where they have their own
    teachers: Teachers | None = None
    hint_pairs: tuple[HintPair, ...] = ()
    lanes: tuple[
        Lane, ...
    ] = ()  # several tasks, those that are trained first; the first is also the job's own
    lane: str | None = None  # the one of several tasks that the job is of

    def kept_in(self, stage: int) -> Kept:
        return self.kept[stage] if stage < len(self.kept) else Kept()

    def views_in(self, stage: int) -> int | None:
        """How many views of an image a stage shows, one epoch after the other; None: every epoch has its own."""
        kept = self.kept_in(stage)
        if kept.cut is not None or kept.answers:
            return kept.views
        return (
            self.config.data.views if self.teachers is not None and self.train_view.mixing is None else None
        )

    @property
    def cure(self) -> str:
        """What helps where numbers grow beyond bounds."""
        return (
            f"lower --lr (now {self.config.optim.lr:g}), add --warmup 2epochs or a smaller --clip; "
            f"the last checkpoint in {self.run} is from before that"
        )

    def objective(self, step: int) -> Objective:
        """What outputs cost in a step, counted from 0: the margin of a margin head may grow over the first steps."""
        ramp = self.config.task.margin_ramp
        if ramp is None or not isinstance(self.task, Classification):
            return self.task.objective
        num_steps = ramp.steps(self.pace.steps_per_epoch)
        return self.task.at_margin(min(1.0, step / num_steps)).objective

    @property
    def trained_lanes(self) -> tuple[Lane, ...]:
        return tuple(lane for lane in self.lanes if lane.trained)

    def of(self, lane: Lane) -> Job:
        """The job as if one of several tasks were its only one; the model is the same."""
        return replace(
            self,
            dataset=lane.dataset,
            built=lane.built,
            task=lane.task,
            select_by=lane.task.metrics[0],
            train_view=lane.view,
            lanes=(),
            lane=lane.name,
        )

    @property
    def batch_size(self) -> int:
        """Images of a micro-batch: an episode is one."""
        meta = self.config.meta
        return meta.num_rows if meta.is_on else self.config.data.batch_size

    @property
    def images_per_epoch(self) -> int:
        meta = self.config.meta
        if meta.is_on:
            return meta.episodes * meta.num_rows
        datasets = [lane.dataset for lane in self.trained_lanes] or [self.dataset]
        return sum(len(dataset.splits["train"]) for dataset in datasets)

    def windows(self, epoch: int) -> list[list[Any]]:
        """The optimizer steps of an epoch, over all processes: arrays of places, of several tasks `TaskPlaces`."""
        if self.lanes:
            return task_windows(self.config, samples_of(self.lanes), epoch)
        return training_windows(self.dataset, self.config, epoch, self.sample_weights)
