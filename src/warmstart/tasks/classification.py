"""Classification: what its targets cost in training, and what its logits are worth afterwards.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart import stats
from warmstart.errors import UserError, closest, listing
from warmstart.tasks import metrics, objectives

_MAX_LOGITS_AT_ONCE = 4_000_000  # 32 MB in float64
_EXPECTED_WEIGHTS = "balanced, or NAME=WEIGHT,... with weights that are numbers from 0 on"


@dataclass(frozen=True)
class Classification:
    """One class per image. `class_weights` are in the order of `classes`; None is 1 for each."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    name = "classification"
    statistics = None
    metrics = ("accuracy", "loss", "f1", "balanced_accuracy", "top5", "ece")
    columns = ("precision", "recall", "f1", "support")

    def __post_init__(self) -> None:
        num_weights = len(self.classes if self.class_weights is None else self.class_weights)
        assert num_weights == len(self.classes), f"{num_weights} weights for {len(self.classes)} classes"

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum, weight) of logits (N, K) and class indices (N,): see `objectives.cross_entropy`."""
        weights = None
        if self.class_weights is not None:
            dtype = torch.promote_types(outputs.dtype, torch.float32)
            weights = objectives.on_device(self.class_weights, outputs.device, dtype)
        return objectives.cross_entropy(outputs, targets, weights, self.label_smoothing)

    def evaluate(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """Metrics of logits (N, K) and class indices (N,); `loss` is plain cross-entropy in nats.

        `loss` knows neither smoothing nor class weights, so that runs can be compared. `accuracy_low`
        and `accuracy_high` are its 95 % interval. A row without a finite maximum predicts
        nothing: then every metric is NaN.
        """
        assert len(logits) and logits.shape == (len(targets), len(self.classes)), f"{logits.shape}"
        if not _have_predictions(logits):
            return dict.fromkeys(self.evaluate(np.zeros_like(logits), targets), math.nan)
        predicted = logits.argmax(axis=1)
        correct = predicted == targets
        matrix = metrics.confusion(targets, predicted, len(self.classes))
        losses, confidence = _losses_and_confidence(logits, targets)
        top5: dict[str, float] = {}
        if len(self.classes) > 5:
            top5["top5"] = metrics.top_k_correct(logits, targets, 5) / len(targets)
        low, high = stats.accuracy_interval(correct)
        return {
            "loss": float(losses.mean()),
            "accuracy": metrics.accuracy(matrix),
            **top5,
            "f1": metrics.macro_f1(matrix),
            "balanced_accuracy": metrics.balanced_accuracy(matrix),
            "ece": stats.expected_calibration_error(confidence, correct),
            "accuracy_low": low,
            "accuracy_high": high,
        }

    def table(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> list[dict[str, Any]]:
        """One row per class (name, precision, recall, f1, support): see `metrics.per_class`.

        Where a row of the logits predicts nothing, all but name and support is None.
        """
        matrix = metrics.confusion(targets, logits.argmax(axis=1), len(self.classes))
        rows = metrics.per_class(matrix, self.classes)
        if _have_predictions(logits):
            return rows
        return [{**row, "precision": None, "recall": None, "f1": None} for row in rows]

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, K), the softmax of each row; NaN for a row without a finite maximum."""
        with np.errstate(invalid="ignore"):
            shifted = logits.astype(np.float32) - logits.max(axis=1, keepdims=True)
        np.exp(shifted, out=shifted)  # the largest exponent is 0, so none overflows
        shifted /= shifted.sum(axis=1, keepdims=True)
        return shifted

    def headline(self, metrics: Mapping[str, float]) -> str:
        m = metrics
        top5 = f"top-5 {m['top5']:.4f}  " if "top5" in m else ""
        return (
            f"loss {m['loss']:.4f}  accuracy {m['accuracy']:.4f} [{m['accuracy_low']:.3f}, "
            f"{m['accuracy_high']:.3f}]  {top5}f1 {m['f1']:.4f}"
        )


def _have_predictions(logits: NDArray[np.float32]) -> bool:
    """Whether each row has a finite maximum, which a NaN, +inf, or nothing but -inf prevents."""
    return bool(np.isfinite(logits.max(axis=1)).all())


def _losses_and_confidence(
    logits: NDArray[np.float32], targets: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per sample (N,), in float64: cross-entropy in nats, and probability of the likeliest class."""
    losses, confidence = np.empty(len(logits)), np.empty(len(logits))
    chunk = max(1, _MAX_LOGITS_AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), chunk):
        rows = slice(start, start + chunk)
        shifted = logits[rows].astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        own = np.take_along_axis(shifted, targets[rows, None].astype(np.int64), axis=1)[:, 0]
        total = np.exp(shifted).sum(axis=1)
        losses[rows] = np.log(total) - own
        confidence[rows] = 1 / total
    return losses, confidence


def resolve_class_weights(
    setting: str | None, classes: Sequence[str], counts: Mapping[str, int], num_images: int | None = None
) -> tuple[float, ...] | None:
    """Weights in the order of `classes` from `task.class_weights`; `counts` are training images by class.

    `balanced` gives N / (K * count), which makes every class weigh the same in sum (King & Zeng 2001).
    Labels, of which each of `num_images` images has any number, are weighed where an image has them:
    `balanced` is then negatives / positives, which makes both sides of a label weigh the same in sum.
    `cat=2,dog=1` names weights, classes left out weigh 1; `none` is None. Raises one UserError with
    all problems.
    """
    if setting is None or setting.strip().lower() == "none":
        return None
    if setting.strip().lower() == "balanced":
        return _balanced(classes, counts) if num_images is None else _positive(classes, counts, num_images)
    weights, problems = _named_weights(setting, classes)
    if problems:
        raise UserError.of_problems(problems, "class_weights")
    resolved = tuple(weights.get(name, 1.0) for name in classes)
    if not any(resolved):
        raise UserError(
            f"class_weights = {setting!r} gives every class a weight of 0: there would be nothing to learn",
            "at least one class with a weight above 0",
            "raise a weight, or leave class_weights out",
        )
    return resolved


def _balanced(classes: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
    empty = [name for name in classes if not counts.get(name)]
    if empty:
        raise UserError(
            f"class_weights = 'balanced', but there are no training images of {listing(map(repr, empty))}",
            "at least one training image of every class",
            "add images, raise --limit, or name the weights (cat=2,dog=1)",
        )
    total = sum(counts[name] for name in classes)
    return tuple(total / (len(classes) * counts[name]) for name in classes)


def _positive(classes: Sequence[str], counts: Mapping[str, int], num_images: int) -> tuple[float, ...]:
    one_sided = [name for name in classes if not 0 < counts.get(name, 0) < num_images]
    if one_sided:
        raise UserError(
            f"class_weights = 'balanced', but none or all of the {num_images} training images have "
            f"{listing(map(repr, one_sided))}",
            "training images with and without every label",
            "add images, raise --limit, or name the weights (cat=2,dog=1)",
        )
    return tuple((num_images - counts[name]) / counts[name] for name in classes)


def _named_weights(setting: str, classes: Sequence[str]) -> tuple[dict[str, float], list[UserError]]:
    """Weights by class, and every problem found. The last `=` of an entry ends the name."""
    weights: dict[str, float] = {}
    problems: list[UserError] = []
    for entry in _entries(setting, classes):
        name, equals, number = (part.strip() for part in entry.rpartition("="))
        if not equals:
            problem = f"class_weights: {entry.strip()!r} is not NAME=WEIGHT"
            problems.append(UserError(problem, _EXPECTED_WEIGHTS, "write for example cat=2,dog=1"))
            continue
        weight = _weight(number)
        if name not in classes:
            hint = closest(name, classes) or "use the name of a class"
            problems.append(UserError(f"class_weights: no class is named {name!r}", listing(classes), hint))
        elif weight is None:
            problem = f"class_weights: {number!r} is no weight for {name!r}"
            problems.append(UserError(problem, "a finite number from 0 on", f"write for example {name}=2"))
        elif name in weights:
            problem = f"class_weights: {name!r} has two weights, {weights[name]:g} and {weight:g}"
            problems.append(UserError(problem, "one weight per class", "keep one of them"))
        else:
            weights[name] = weight
    return weights, problems


def _entries(setting: str, classes: Sequence[str]) -> list[str]:
    """The setting cut at commas, except at a comma that is part of a class name (`tench, Tinca tinca=2`)."""
    entries: list[str] = []
    for piece in setting.split(","):
        joined = f"{entries[-1]},{piece}" if entries else piece
        if entries and "=" not in entries[-1] and _could_begin(joined.rpartition("=")[0] or joined, classes):
            entries[-1] = joined
        else:
            entries.append(piece)
    return entries


def _could_begin(text: str, classes: Sequence[str]) -> bool:
    return any(name.startswith(text.strip()) for name in classes)


def _weight(text: str) -> float | None:
    """A finite number from 0 on, or None."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
