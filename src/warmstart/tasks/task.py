"""What a task is to the rest of the house: the questions that the loop and the analysis ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.config.schema import TaskConfig
from warmstart.errors import UserError, closest, listing
from warmstart.tasks.classification import Classification, resolve_class_weights
from warmstart.tasks.multilabel import MultiLabel


class Task(Protocol):
    """Logits are (N, K) for the K `classes`; targets are what the task's data hold, scores its probabilities."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def class_weights(self) -> tuple[float, ...] | None: ...

    @property
    def name(self) -> str:
        """As resolved.json and people call it."""

    @property
    def statistics(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Where outputs are as large as images: (outputs, targets) -> what is kept of each image, (N, numbers).

        `evaluate`, `table` and `scores` then take these rows for logits. None where the logits themselves are kept.
        """

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `--select-by` may name, the main one first."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `table` besides the name."""

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum, weight): see objectives.py."""

    def evaluate(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]: ...

    def table(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> list[dict[str, Any]]: ...

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The metrics in one line, for the log and for people."""


def make_task(
    settings: TaskConfig, classes: tuple[str, ...], targets: NDArray[Any], counts: Mapping[str, int]
) -> Task:
    """The task of the training targets: classification for (N,), multi-label for (N, K).

    `counts` are training images by class. Raises UserError for class weights that do not fit.
    """
    if targets.ndim == 2:
        weights = resolve_class_weights(settings.class_weights, classes, counts, len(targets))
        return MultiLabel(classes, settings.label_smoothing, weights)
    weights = resolve_class_weights(settings.class_weights, classes, counts)
    return Classification(classes, settings.label_smoothing, weights)


def resolve_metric(asked: str, task: Task) -> str:
    """The metric that selects; `auto` is the task's main one. Raises UserError for one that it has not."""
    if asked == "auto":
        return task.metrics[0]
    if asked not in task.metrics:
        raise UserError(
            f"--select-by {asked}: a run of {task.name} does not measure it",
            listing(task.metrics),
            closest(asked, task.metrics) or f"--select-by {task.metrics[0]}, which is the default here",
        )
    if asked == "top5" and len(task.classes) <= 5:
        raise UserError(
            f"--select-by top5 cannot choose among {len(task.classes)} classes: every answer would be right",
            "more than 5 classes",
            "--select-by accuracy",
        )
    return asked
