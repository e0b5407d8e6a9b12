"""What a task is to the rest of the house: the questions that the loop and the analysis ask of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.config.schema import Config, TaskConfig
from warmstart.errors import UserError, closest, listing
from warmstart.records import Decision, Margin
from warmstart.tasks.class_weights import resolve_class_weights
from warmstart.tasks.classification import Classification
from warmstart.tasks.mask_objectives import MaskLoss
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

# Settings of the section `task` that only a loss of masks reads.
MASK_SETTINGS = (
    "loss",
    "focal_gamma",
    "focal_alpha",
    "ce_weight",
    "dice_weight",
    "dice_classes",
    "lovasz_weight",
    "tversky_weight",
    "tversky_alpha",
)


Objective = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


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
    config: Config,
    classes: tuple[str, ...],
    targets: NDArray[Any],
    counts: Mapping[str, float],
    ignore: int | None = None,
    margin: Margin | None = None,
    contrastive: str | None = None,
) -> Task:
    """The task of the training data: segmentation where masks have an `ignore` id, else by the targets:
    classification for (N,), multi-label for (N, K).

    `counts` are training images, or places of an epoch, by class; for masks, training pixels by class.
    `margin` is that of the model's head, `contrastive` its loss where it has a text tower. Of `config` the section
    `task` is read, and the batch size that a metric of masks is named after.
    Raises UserError for class weights that do not fit, and for settings that this task does not read.
    """
    kind = "masks" if ignore is not None else "multi-label" if targets.ndim == 2 else ""
    _check_one_class(config.task, margin, kind, classes)
    _check_contrastive(config.task, contrastive, kind)
    if ignore is not None:
        weights = resolve_class_weights(config.task.class_weights, classes, counts)
        smoothing, loss = config.task.label_smoothing, _mask_loss(config.task)
        return Segmentation(classes, ignore, smoothing, weights, loss, config.data.batch_size)
    _check_mask_settings(config.task, "multi-label" if targets.ndim == 2 else "one class per image")
    if targets.ndim == 2:
        weights = resolve_class_weights(config.task.class_weights, classes, counts, len(targets))
        return MultiLabel(classes, config.task.label_smoothing, weights)
    decision = None
    if config.task.positive is not None or config.task.threshold is not None:
        decision = Decision(config.task.positive or classes[1])
        if config.task.threshold is not None and config.task.threshold.kind == "fixed":
            decision = replace(decision, threshold=config.task.threshold.value)
    smoothing, rule = config.task.label_smoothing, config.task.threshold
    task = Classification(classes, smoothing, None, margin, decision, rule, contrastive)
    setting = config.task.class_weights
    if task.is_binary and setting is not None:
        setting = _by_side(setting, classes[1 - task.positive], classes[task.positive])
    return replace(task, class_weights=resolve_class_weights(setting, classes, counts))


def _by_side(setting: str, negative: str, positive: str) -> str:
    """Class weights with the names of classes for `negative=` and `positive=`."""
    for word, name in (("negative", negative), ("positive", positive)):
        if word not in (negative, positive):
            setting = re.sub(rf"(^|,)\s*{word}\s*=", lambda found, name=name: f"{found[1]}{name}=", setting)  # type: ignore[misc]
    return setting


def _check_one_class(
    settings: TaskConfig, margin: Margin | None, kind: str, classes: tuple[str, ...]
) -> None:
    """What needs one class per image, or two classes: UserError names the settings that these data cannot have.

    `kind` is what the data are if an image has not one class.
    """
    problems = []
    if margin is not None and kind:
        problems.append(
            UserError(
                f"a margin head ({margin.method}) needs one class per image, and these data are {kind}",
                "images with one label each",
                "--margin-method none",
            )
        )
    for name in ("positive", "threshold"):
        value = getattr(settings, name)
        if value is not None and (kind or len(classes) != 2):
            problems.append(
                UserError(
                    f"--{name} {value} is for two classes, and these data are {kind or f'of {len(classes)} classes'}",
                    "two classes, one per image",
                    f"leave --{name} out",
                )
            )
    if not problems and settings.positive is not None and settings.positive not in classes:
        problems.append(
            UserError(
                f"--positive: no class is named {settings.positive!r}",
                listing(classes),
                closest(settings.positive, classes) or "use the name of a class",
            )
        )
    if problems:
        raise UserError.of_problems(problems, "the section task")


def _check_contrastive(settings: TaskConfig, loss: str | None, kind: str) -> None:
    """Raises UserError for what a loss between images and texts cannot have."""
    if loss is None:
        return
    fix = "--text.head zero-shot has the cross entropy"
    if kind:
        raise UserError(
            f"--text.head contrastive needs one class per image, and these data are {kind}",
            "images with one label each",
            "--text.head linear",
        )
    for name in ("label_smoothing", "class_weights"):
        value = getattr(settings, name)
        if value != TaskConfig.model_fields[name].default:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value} has no place in a loss between images and texts", f"no {flag}", fix
            )


def _mask_loss(settings: TaskConfig) -> MaskLoss:
    return MaskLoss(
        settings.loss,
        settings.focal_gamma,
        settings.focal_alpha,
        settings.ce_weight,
        settings.dice_weight,
        settings.dice_classes,
        settings.lovasz_weight,
        settings.tversky_weight,
        settings.tversky_alpha,
    )


def _check_mask_settings(settings: TaskConfig, kind: str) -> None:
    """No setting is dead: what only masks have is refused where there are none."""
    fields = TaskConfig.model_fields
    found = [
        UserError(
            f"--{name.replace('_', '-')} {getattr(settings, name)} is for masks, and these data are {kind}",
            "data with a mask per image",
            f"leave task.{name} out",
        )
        for name in MASK_SETTINGS
        if getattr(settings, name) != fields[name].default
    ]
    if found:
        raise UserError.of_problems(found, "the section task")


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
