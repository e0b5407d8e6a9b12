"""What keeps a training near the start model: a penalty on the weights (penalty.py), and the start model's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from warmstart.engine.job import Job
from warmstart.engine.lessons.penalty import Penalty
from warmstart.engine.lessons.start import Start
from warmstart.tasks.objectives import binary_divergence, divergence


def make_penalty(job: Job) -> Penalty | None:
    retain, start = job.config.retain, job.start
    if start is None or not (retain.l2sp or retain.ewc):
        return None
    parameters = dict(job.built.module.named_parameters())
    names = start.held_parameters(job)
    held = [
        (parameters[name], start.weights[name], start.fisher[name] if retain.ewc else None) for name in names
    ]
    return Penalty(held, retain.l2sp, retain.ewc)


class StartAnswers:
    """Learning without Forgetting: the start model's answers to the images of every batch (Li and Hoiem 2018).

    Called with what the trained part takes and gives, it returns `weight` times the sum over the batch of the
    divergence from the start model's answers, in the outputs that the start weights brought along.
    """

    def __init__(self, job: Job, start: Start, part: Callable[[nn.Module], nn.Module]) -> None:
        self._part = part(start.model(job.built))
        self._divergence = binary_divergence if job.built.multi_label else divergence
        columns = start.known_outputs(job.built)
        self._columns = None if len(columns) == len(job.built.classes) else columns
        self._weight, self._temperature = job.config.retain.lwf, job.config.retain.temperature

    def __call__(self, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            answers = self._part(inputs)
        if self._columns is not None:
            outputs, answers = outputs[:, self._columns], answers[:, self._columns]
        return self._weight * self._divergence(outputs, answers, self._temperature)


def start_answers(job: Job, part: Callable[[nn.Module], nn.Module], stage: int) -> StartAnswers | None:
    """What a stage learns of them, if it does: `part` gives what is left of a model behind the cut of a stage."""
    start = job.start
    if start is None or not job.config.retain.lwf:
        return None
    now = job.built.module.state_dict()
    assert job.kept_in(stage).cut is None or start.has_prefix_of(job, stage, now), (
        "kept features are of other weights than the start's"
    )
    return StartAnswers(job, start, part)
