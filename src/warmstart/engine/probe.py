"""Memory and time of a few real steps, measured on a copy so that the run itself is untouched.

Also which number of decoding threads they go fastest with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.data.batches import Batch, View, deliver, training_batches
from warmstart.data.workers import TIE
from warmstart.engine.episodes import episodes_of, episodic
from warmstart.engine.job import Job
from warmstart.engine.lessons.hints import Hints
from warmstart.engine.lessons.lessons import Lessons, hint_groups, make_hints, make_lessons
from warmstart.engine.lessons.start import Start
from warmstart.engine.optimizer import make_optimizer
from warmstart.engine.recomputed import recomputed
from warmstart.engine.step import Arithmetic, make_scaler, train_window
from warmstart.inference.cut import Tail, prefix_features
from warmstart.inference.device import peak_bytes
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.memory import AtOnce
from warmstart.inference.predictor import predict_outputs
from warmstart.models.task_heads import called

_NUM_STEPS = 4  # the first pays for allocation and is not counted
_NUM_EVAL_BATCHES = 2
_MOST_SECONDS, _MOST_SHARE = 3.0, 0.1  # of a measurement of workers: at most so long, and so much of the run
_FEWEST_BATCHES, _MOST_BATCHES = 2, 64  # for each number of workers


@dataclass(frozen=True)
class Probe:
    """Seconds per optimizer step, per evaluated image, and per image whose features are computed once.

    `peak_bytes` is the peak memory (None: not measurable). All are of the run's last stage; `earlier` has the seconds
    per step and per image with features of those before it. `at_once` is how many images of a training batch found
    room in the last stage (None: all).
    """

    seconds_per_step: float
    seconds_per_eval_image: float
    seconds_per_feature_image: float
    peak_bytes: int | None
    earlier: tuple[tuple[float, float], ...] = ()
    at_once: int | None = None

    def of_stage(self, stage: int) -> tuple[float, float]:
        """Seconds per optimizer step, and per image whose features are computed once."""
        return (*self.earlier, (self.seconds_per_step, self.seconds_per_feature_image))[
            min(stage, len(self.earlier))
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(job: Job) -> Probe:
    """Run a few steps of each of the run's stages, and a few batches of evaluation; of several tasks, of each."""
    if job.lanes:
        return _of_tasks(job)
    earlier = tuple(_of_stage(job, stage) for stage in range(job.plan.last_stage))
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    with _trial(job) as trial:
        seconds = _train_steps(job, trial)
        per_image = _evaluate(job, trial.module)
    per_feature, peak = trial.parts.per_feature_image, peak_bytes(job.device)
    return Probe(seconds, per_image, per_feature, peak, earlier, trial._at_once.limit)


def _of_tasks(job: Job) -> Probe:
    """The mean step, as often as each task has its turn, and the largest memory."""
    turns = [micro.task for window in job.windows(0) for micro in window]
    probes = [probe(job.of(lane)) for lane in job.trained_lanes]
    shares = [turns.count(number) / len(turns) for number in range(len(probes))]

    def mean(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    peaks = [found.peak_bytes for found in probes if found.peak_bytes is not None]
    earlier = [
        (mean([found.of_stage(stage)[0] for found in probes]), 0.0) for stage in range(job.plan.last_stage)
    ]
    return Probe(
        mean([found.seconds_per_step for found in probes]),
        mean([found.seconds_per_eval_image for found in probes]),
        0.0,
        max(peaks, default=None),
        tuple(earlier),
    )


def _of_stage(job: Job, stage: int) -> tuple[float, float]:
    with _trial(job, stage) as trial:
        return _train_steps(job, trial), trial.parts.per_feature_image


def speeds_of_workers(job: Job, numbers: Sequence[int]) -> dict[int, float]:
    """Trained images per second by number of decoding threads, from few to many until more are slower.

    Images come as the run will get them (each number goes on where the one before it stopped), while the last
    stage's steps keep the cores busy. Empty where that would take more than 3 seconds, or a tenth of the run.
    """
    samples, view, part = job.dataset.training, job.train_view, job.world.part
    arrays = cycle([[micro] for window in job.windows(0) for micro in window])

    def delivered(number: int) -> closing[Generator[Batch, None, None]]:
        return closing(training_batches(samples, view, islice(arrays, 1 + _MOST_BATCHES), 0, number, part))

    speeds: dict[int, float] = {}
    with _trial(job) as trial:
        with delivered(0) as batches:
            trial.train(islice(batches, 1))  # pays for allocation
            seconds, _ = trial.train(islice(batches, 1))
        num_batches = job.pace.total_steps * job.config.optim.accumulate
        limit = min(_MOST_SECONDS, _MOST_SHARE * num_batches * seconds)
        if 2 * (1 + _FEWEST_BATCHES) * seconds > limit:
            return {}
        end = time.perf_counter() + limit
        for number in numbers:
            with delivered(number) as batches:
                seconds, _ = trial.train(islice(batches, 1))  # nobody decoded ahead for the first one
                num = int(limit / len(numbers) / seconds) - 1
                num = min(max(num, _FEWEST_BATCHES), _MOST_BATCHES)
                seconds, num_images = trial.train(islice(batches, num))
            speeds[number] = num_images / seconds
            is_late = len(speeds) > 1 and time.perf_counter() > end
            if is_late or speeds[number] < (1 - TIE) * max(speeds.values()):
                break
    return speeds


class _Trial:
    """A copy of the model in a stage, ready to be trained."""

    def __init__(self, job: Job, stage: int) -> None:
        self._job, self.module = job, copy.deepcopy(job.built.module)
        hints = make_hints(job, None)
        groups = (*apply_stage(self.module, job.plan, stage), *hint_groups(job, hints, stage))
        self._optimizer = make_optimizer(job.config.optim, groups, job.device)
        set_modes(self.module, job.plan, job.built.blocks, stage)
        self.parts = _Parts(job, self.module, stage)
        self._trained = episodic(job, self.module, recomputed(job, stage, self.module, self.parts.trained))
        scaler = make_scaler(job.precision, job.device)
        self._arithmetic = Arithmetic(
            job.precision,
            job.config.optim.clip,
            scaler,
            lessons=_lessons(job, self, stage, hints),
            captions=job.captions,
            whole=job.batch_size if job.config.meta.is_on else 1,
        )
        self._at_once = AtOnce()

    def step(self, batches: Iterable[Batch]) -> None:
        batches = map(self.parts.answered, batches)
        parts, objective = self.parts, self._job.task.objective
        given = self._trained, batches, parts.inputs, objective, self._optimizer, self._arithmetic
        train_window(*given, self._at_once)

    def train(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """A step for each batch. Seconds, the wait for the batches included, and images."""
        start, num_images = time.perf_counter(), 0
        for batch in batches:
            self.step([batch])
            num_images += len(batch)
        _wait(self._job.device)
        return time.perf_counter() - start, num_images


def _lessons(job: Job, trial: _Trial, stage: int, hints: Hints | None) -> Lessons | None:
    """Answers cost a forward pass more; the start that a run holds on to is opened later, and as large."""
    if job.config.retain.lwf:
        job = replace(job, start=Start.of(job, job.built.module.state_dict()))
    return make_lessons(job, trial.module, trial.parts.part, stage, hints)


@contextmanager
def _trial(job: Job, stage: int | None = None) -> Iterator[_Trial]:
    """A trial of a stage, by default of the last, which costs most: more is trained in it than before.

    What is drawn at random while it lasts is drawn again by the run.
    """
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        yield _Trial(job, job.plan.last_stage if stage is None else stage)


class _Parts:
    """The part of the model that is trained, what it takes of a batch, and what computing features costs."""

    def __init__(self, job: Job, module: nn.Module, stage: int) -> None:
        self._job, self._module = job, module
        self._buffer = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
        self._cut, self._keeps_answers = job.kept_in(stage).cut, job.kept_in(stage).answers
        self.trained = self.part(module)
        self.seconds, self.num_images = 0.0, 0

    def part(self, module: nn.Module) -> nn.Module:
        height, width, channels = self._job.train_view.shape
        if self._cut is None:
            return called(self._job.built, module)
        return Tail(module, self._cut, (channels, height, width))

    def answered(self, batch: Batch) -> Batch:
        """With the teacher's answers where the run keeps them: they cost what features cost."""
        teachers = self._job.teachers
        if not self._keeps_answers or teachers is None:
            return batch
        start = time.perf_counter()
        answers = teachers(batch.images).float().cpu().numpy()
        self.seconds += time.perf_counter() - start
        self.num_images += len(batch) if self._cut is None else 0  # each image counts once
        return replace(batch, answers=answers)

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        tensor = self._buffer(images)
        if self._cut is None:
            return tensor
        start = time.perf_counter()
        modes = {module: module.training for module in self._module.modules()}
        tensor = prefix_features(self._module, self._cut, tensor).clone()
        for module, is_training in modes.items():
            module.training = is_training
        _wait(self._job.device)
        self.seconds, self.num_images = (
            self.seconds + time.perf_counter() - start,
            self.num_images + len(images),
        )
        return tensor

    def count_from_here(self) -> None:
        """What came before paid for allocation."""
        self.seconds, self.num_images = 0.0, 0

    @property
    def per_feature_image(self) -> float:
        return self.seconds / self.num_images if self.num_images else 0.0


def _train_steps(job: Job, trial: _Trial) -> float:
    """Seconds per optimizer step, without what computing features took."""
    samples, windows = job.dataset.training, job.windows(0)[:_NUM_STEPS]
    times = []
    with closing(
        training_batches(samples, job.train_view, windows, 0, job.workers, job.world.part)
    ) as batches:
        for window in windows:
            start, before = time.perf_counter(), trial.parts.seconds
            trial.step(islice(batches, len(window)))
            _wait(job.device)
            times.append(time.perf_counter() - start - (trial.parts.seconds - before))
            if len(times) == 1 < len(windows):
                trial.parts.count_from_here()
    counted = times[1:] or times
    return sum(counted) / len(counted)


def _evaluate(job: Job, module: nn.Module) -> float:
    samples = job.dataset.splits.get("val", job.dataset.splits["train"])
    parts = _Parts(job, module, job.plan.last_stage)
    view = View(job.built.preprocessing, job.dataset.native)
    if job.config.meta.is_on:
        wanted = episodes_of(job, samples, "val")
    else:
        starts = range(0, len(samples), job.eval_batch_size)
        wanted = [np.arange(start, min(start + job.eval_batch_size, len(samples))) for start in starts]
    batches = list(deliver(samples, wanted[:_NUM_EVAL_BATCHES], view, job.workers))
    part = episodic(job, module, parts.trained)
    start = time.perf_counter()
    predict_outputs(part, batches, parts.inputs, job.precision)
    _wait(job.device)
    seconds = time.perf_counter() - start - parts.seconds
    return seconds / sum(len(batch) for batch in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
