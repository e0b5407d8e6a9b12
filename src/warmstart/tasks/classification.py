"""Classification: what its targets cost in training, and what its logits are worth afterwards.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart import stats
from warmstart.config.threshold import ThresholdRule
from warmstart.records import Decision, Margin
from warmstart.tasks import binary, metrics, objectives
from warmstart.tasks.margin import with_margin

_METRICS = ("accuracy", "loss", "f1", "balanced_accuracy", "top5", "ece")
_CONTRASTIVE = {"softmax": objectives.image_text_softmax, "sigmoid": objectives.image_text_sigmoid}
_MAX_LOGITS_AT_ONCE = 4_000_000  # 32 MB in float64


@dataclass(frozen=True)
class Classification:
    """One class per image. `class_weights` are in the order of `classes`; None is 1 for each.

    `margin` is that of the model's head, and part of the objective alone. Of two classes one is positive:
    `decision` names it, and holds the threshold once that was chosen by `rule`. `contrastive` is the loss of a model
    with a text tower (softmax or sigmoid); what is measured is the same as of any classifier.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    margin: Margin | None = None
    decision: Decision | None = None
    rule: ThresholdRule | None = None
    contrastive: str | None = None

    name = "classification"
    statistics = None
    columns = ("precision", "recall", "f1", "support")

    def __post_init__(self) -> None:
        num_weights = len(self.classes if self.class_weights is None else self.class_weights)
        assert num_weights == len(self.classes), f"{num_weights} weights for {len(self.classes)} classes"
        assert self.decision is None or self.is_binary, f"a decision among {len(self.classes)} classes"

    @property
    def is_binary(self) -> bool:
        return len(self.classes) == 2

    @property
    def metrics(self) -> tuple[str, ...]:
        return _METRICS + (binary.METRICS if self.is_binary else ())

    @property
    def positive(self) -> int:
        """The number of the positive class of two: the one named, else the second."""
        return 1 if self.decision is None else self.classes.index(self.decision.positive)

    def at_margin(self, share: float) -> Classification:
        """The same task with a share of its margin: while that grows."""
        if self.margin is None:
            return self
        return replace(self, margin=replace(self.margin, margin=self.margin.margin * share))

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum, weight) of logits (N, K) and class indices (N,): see `objectives.cross_entropy`.

        Of a margin head the logits are those `with_margin`: see tasks/margin.py.
        """
        if self.contrastive is not None:
            return _CONTRASTIVE[self.contrastive](outputs, targets)
        if self.margin is not None:
            outputs = with_margin(outputs, targets, self.margin)
        weights = None
        if self.class_weights is not None:
            dtype = torch.promote_types(outputs.dtype, torch.float32)
            weights = objectives.on_device(self.class_weights, outputs.device, dtype)
        return objectives.cross_entropy(outputs, targets, weights, self.label_smoothing)

    def evaluate(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """Metrics of logits (N, K) and class indices (N,); `loss` is plain cross-entropy in nats.

        `loss` knows neither smoothing nor class weights, so that runs can be compared. `accuracy_low`
        and `accuracy_high` are its 95 % interval. Of two classes: F1, precision and recall of the
        positive one. All are of the class with the highest score; what the threshold in force
        changes is repeated as `NAME_at_threshold`. A row without a finite maximum predicts
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
            **(self._of_positive(predicted, targets) if self.is_binary else {}),
            **self._at_threshold(logits, targets),
        }

    def _of_positive(self, predicted: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        return binary.positive_metrics(predicted == self.positive, targets == self.positive)

    def _at_threshold(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """The threshold, and what changes with it; nothing where none is in force."""
        if self.decision is None or self.decision.threshold is None:
            return {}
        predicted = self.answers(logits)
        matrix = metrics.confusion(targets, predicted, len(self.classes))
        changed = {
            "accuracy": metrics.accuracy(matrix),
            "f1": metrics.macro_f1(matrix),
            **self._of_positive(predicted, targets),
        }
        return {
            "threshold": self.decision.threshold,
            **{f"{name}_at_threshold": value for name, value in changed.items()},
        }

    def answers(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N,): the class with the highest logit; of two, the positive one from the threshold on, if there is one."""
        if self.decision is None or self.decision.threshold is None:
            return logits.argmax(axis=1)
        return self.answers_by(self.scores(logits))

    def answers_by(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """`answers`, by the `scores` of the logits."""
        return binary.answers_by(scores, self.classes, self.decision)

    def decided(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> Classification:
        """The same task with the threshold that `rule` chooses on these samples; as it is without one."""
        if self.rule is None or self.rule.kind == "fixed":
            return self
        scores, name = self.scores(logits)[:, self.positive], self.classes[self.positive]
        threshold = binary.choose_threshold(self.rule, scores, targets == self.positive)
        return replace(self, decision=Decision(name, threshold, str(self.rule)))

    def table(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> list[dict[str, Any]]:
        """One row per class (name, precision, recall, f1, support) of the `answers`: see `metrics.per_class`.

        Where a row of the logits predicts nothing, all but name and support is None.
        """
        matrix = metrics.confusion(targets, self.answers(logits), len(self.classes))
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
            f"{m['accuracy_high']:.3f}]  {top5}f1 {m['f1']:.4f}{self._decided_headline(m)}"
        )

    def _decided_headline(self, m: Mapping[str, float]) -> str:
        """F1 of the positive class where one was named, and at the threshold."""
        if self.decision is None:
            return ""
        text = f"  f1 of {self.decision.positive} {m['f1_positive']:.4f}"
        if "threshold" in m:
            text += f" ({m['f1_positive_at_threshold']:.4f} from {m['threshold']:.3f} on)"
        return text


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
