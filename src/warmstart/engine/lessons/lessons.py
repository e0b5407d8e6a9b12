"""What is learned beside the targets: the answers of teachers, and of the start model; a second loss of each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from warmstart.adapt.apply import Group
from warmstart.config.schema import Config
from warmstart.console import log
from warmstart.data.batches import Batch
from warmstart.engine.checkpoint import Saved
from warmstart.engine.job import Job
from warmstart.engine.lessons.hints import Hints, watched
from warmstart.engine.lessons.remedies import StartAnswers, start_answers
from warmstart.engine.lessons.teachers import Teachers
from warmstart.tasks.mask_objectives import mask_divergence
from warmstart.tasks.objectives import binary_divergence, divergence

LWF, SOFT, HINTS = "lwf", "distill", "hints"  # as the rows of metrics.jsonl call them


def lesson_names(config: Config) -> tuple[str, ...]:
    """What a run learns beside its targets, in the order of the sums."""
    distill = config.distill
    asked = {
        LWF: config.retain.lwf,
        SOFT: distill.teacher and distill.alpha,
        HINTS: distill.teacher and distill.hints,
    }
    return tuple(name for name, is_asked in asked.items() if is_asked)


class Lessons:
    """Called with a batch, what the trained part took and gave, and the targets: the sums of `lesson_names`, weighted.

    `hard` is the weight of the task's own loss beside them.
    """

    def __init__(self, job: Job, module: nn.Module, start: StartAnswers | None, hints: Hints | None) -> None:
        distill = job.config.distill
        self.names = lesson_names(job.config)
        self.hard = 1 - distill.alpha if distill.teacher else 1.0
        self._module, self._start, self._hints, self._teachers = module, start, hints, job.teachers
        self._alpha, self._hint_weight = distill.alpha, distill.hints
        self._divergence = _divergence_of(job)
        self._is_multi_label, self._ignore = job.built.multi_label, job.dataset.ignore
        self._student_maps: dict[str, Any] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While it lasts, the student's maps are kept for the call that follows."""
        if self._hints is None:
            yield
            return
        paths = dict.fromkeys(pair.student_path for pair in self._hints.pairs)
        with watched(self._module, paths) as self._student_maps:
            yield

    def __call__(
        self, batch: Batch, given: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        found = {} if self._start is None else {LWF: self._start(given, outputs)}
        if self._teachers is not None:
            found |= self._taught(self._teachers, batch, outputs, targets)
        return torch.stack([found[name] for name in self.names])

    def _taught(
        self, teachers: Teachers, batch: Batch, outputs: torch.Tensor, targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        with ExitStack() as stack:
            maps = [
                stack.enter_context(watched(teacher.module, self._paths(number)))
                for number, teacher in enumerate(teachers.each)
            ]
            if batch.answers is None:
                answers = teachers(batch.images)
            else:
                answers = torch.from_numpy(batch.answers).to(outputs.device, non_blocking=True)
        found = {SOFT: self._alpha * self._divergence(outputs, answers, targets)} if self._alpha else {}
        if self._hints is not None:
            sizes = batch.images.shape[1:3], [each.preprocessing.image_size for each in teachers.each]
            distances = self._hints(self._student_maps, maps, sizes)
            found[HINTS] = self._hint_weight * (distances * self._items(outputs, targets)).sum()
            self._student_maps = {}
        return found

    def _paths(self, number: int) -> list[str]:
        pairs = () if self._hints is None else self._hints.pairs
        return [pair.teacher_path for pair in pairs if pair.teacher == number]

    def _items(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N,) or a number: what each image counts in the weight that divides the sums: 1, its labels, its pixels."""
        if self._ignore is not None:
            return (targets.long() != self._ignore).flatten(1).sum(dim=1)
        return outputs.new_tensor(outputs.shape[1] if self._is_multi_label else 1, dtype=torch.float32)


def _divergence_of(job: Job) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    temperature, ignore = job.config.distill.temperature, job.dataset.ignore
    if ignore is not None:
        return lambda outputs, answers, targets: mask_divergence(
            outputs, answers, targets, ignore, temperature
        )
    plain = binary_divergence if job.built.multi_label else divergence
    return lambda outputs, answers, targets: plain(outputs, answers, temperature)


def announce_teachers(job: Job, features: dict[str, Any]) -> None:
    """Whose answers are learned, with which weight, and whether they are kept."""
    distill = job.config.distill
    if job.teachers is None:
        return
    for teacher in job.teachers.each:
        size = "x".join(map(str, teacher.preprocessing.image_size))
        log.info(
            "teacher: %s; the student's images at %s%s",
            teacher.name,
            size,
            "".join(f"; {n}" for n in teacher.notes),
        )
    several = (
        ""
        if len(job.teachers.each) == 1
        else f"; of {len(job.teachers.each)} teachers the mean probabilities"
    )
    log.info(
        "loss: %g x that of the labels + %g x KL from the teacher's answers at temperature %g, x %g%s",
        1 - distill.alpha,
        distill.alpha,
        distill.temperature,
        distill.temperature**2,
        several,
    )
    for pair in job.hint_pairs:
        told = pair.student_path, pair.widths[0], pair.teacher_path, pair.widths[1], pair.stride
        log.info("hint: %s (%d channels) learns from the teacher's %s (%d), a place for %d pixels", *told)
    choices = (features, *features["later"])
    for stage, choice in enumerate(choices):
        where = f"stage {stage + 1}: " if len(choices) > 1 else ""
        views, why = choice["views"], choice["answers_reason"]
        if choice["answers"]:
            of = f"{views} augmented views of each image" if views > 1 else "each image"
            log.info("%sthe teacher answers once for %s, and its answers are kept: %s", where, of, why)
        else:
            log.info("%sthe teacher answers in every step: %s", where, why)


def make_hints(job: Job, saved: Saved | None) -> Hints | None:
    """The projections of a checkpoint where they are of the same maps, else new ones; None without hints."""
    if not job.hint_pairs:
        return None
    hints = Hints(job.hint_pairs, job.config.train.seed, job.device)
    own = hints.state_dict()
    known = {} if saved is None else saved.hints
    if {name: t.shape for name, t in known.items()} == {name: t.shape for name, t in own.items()}:
        hints.load_state_dict(known)
    return hints


def hint_groups(job: Job, hints: Hints | None, stage: int) -> tuple[Group, ...]:
    return () if hints is None else hints.groups(job.config.optim, job.plan.stages[stage].factor)


def make_lessons(
    job: Job, module: nn.Module, part: Callable[[nn.Module], nn.Module], stage: int, hints: Hints | None
) -> Lessons | None:
    """`part` gives what is left of a model behind the cut of a stage; None where nothing but targets is learned."""
    start = start_answers(job, part, stage)
    if start is None and job.teachers is None:
        return None
    return Lessons(job, module, start, hints)
