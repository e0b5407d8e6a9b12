"""Multi-label classification: any number of labels per image, each a question of its own.

Shapes: N samples, K labels. Targets are uint8 (N, K), 1 where the image has the label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.tasks import label_metrics, objectives

NAME = "multi-label"


@dataclass(frozen=True)
class MultiLabel:
    """`class_weights` weigh the images that have a label, in the order of `classes`; None is 1 for each.

    `thresholds` (None: 0.5 for each) turn scores into sets. They are chosen on val, never on test.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    thresholds: tuple[float, ...] | None = None

    name = NAME
    statistics = None
    metrics = ("map", "f1", "f1_micro", "exact_match", "loss")
    columns = ("threshold", "precision", "recall", "f1", "ap", "support")

    def __post_init__(self) -> None:
        for values in (self.class_weights, self.thresholds):
            assert values is None or len(values) == len(self.classes), (
                f"{len(values)} for {len(self.classes)}"
            )

    @property
    def cuts(self) -> NDArray[np.float64]:
        """(K,): the thresholds in force."""
        return np.full(len(self.classes), 0.5) if self.thresholds is None else np.array(self.thresholds)

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum, weight) of logits and targets, both (N, K): see `objectives.binary_cross_entropy`."""
        weights = None
        if self.class_weights is not None:
            dtype = torch.promote_types(outputs.dtype, torch.float32)
            weights = objectives.on_device(self.class_weights, outputs.device, dtype)
        return objectives.binary_cross_entropy(outputs, targets, weights, self.label_smoothing)

    def evaluate(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """Metrics of logits and targets, both (N, K).

        `loss` is plain binary cross-entropy in nats, the mean of all N x K answers; `map` is the mean
        average precision over the labels that some image has; `f1` (mean over those labels),
        `f1_micro` (all answers together) and `exact_match` (share of images whose set is right) are at
        the thresholds. Where a logit is not finite, every metric is NaN.
        """
        assert len(logits) and logits.shape == targets.shape == (len(targets), len(self.classes)), (
            f"{logits.shape}, {targets.shape}"
        )
        if not np.isfinite(logits).all():
            return dict.fromkeys(self.evaluate(np.zeros_like(logits), targets), math.nan)
        scores = self.scores(logits)
        exact = logits.astype(np.float64)
        losses = np.logaddexp(0, exact) - targets * exact
        return {
            "loss": float(losses.mean()),
            "map": label_metrics.mean_average_precision(scores, targets),
            **self.at_thresholds(scores, targets),
        }

    def at_thresholds(self, scores: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """The metrics that depend on the thresholds."""
        counts = label_metrics.counts_at(scores, targets, self.cuts)
        wrong = self.num_wrong(scores, targets)
        return {
            "f1": label_metrics.macro_f1(*counts),
            "f1_micro": label_metrics.micro_f1(*counts),
            "exact_match": float((wrong == 0).mean()),
        }

    def num_wrong(self, scores: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.int64]:
        """(N,): labels of each image that are predicted and should not be, or the other way round."""
        return ((scores >= self.cuts) != targets.astype(bool)).sum(axis=1)

    def table(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> list[dict[str, Any]]:
        """One row per label: name, threshold, precision, recall, f1, ap, support (images that have it).

        What is undefined is None: precision of a label never predicted; recall, F1 and AP of one that no
        image has. Where a logit is not finite, all but name, threshold and support is None.
        """
        finite = bool(np.isfinite(logits).all())
        scores = self.scores(logits if finite else np.zeros_like(logits))
        counts = label_metrics.counts_at(scores, targets, self.cuts)
        hits, predicted, support = (values.tolist() for values in counts)
        ap = label_metrics.average_precisions(scores, targets).tolist()
        return [
            {
                "name": name,
                "threshold": float(self.cuts[k]),
                "precision": hits[k] / predicted[k] if predicted[k] and finite else None,
                "recall": hits[k] / support[k] if support[k] and finite else None,
                "f1": 2 * hits[k] / (support[k] + predicted[k]) if support[k] and finite else None,
                "ap": ap[k] if support[k] and finite else None,
                "support": support[k],
            }
            for k, name in enumerate(self.classes)
        ]

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, K), the sigmoid of each logit; NaN stays NaN."""
        exact = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.exp(-np.logaddexp(0, -exact)).astype(np.float32)

    def with_best_thresholds(self, scores: NDArray[np.float32], targets: NDArray[Any]) -> MultiLabel:
        """The same task with the thresholds of highest F1 on these samples; as it is where a score is NaN."""
        if np.isnan(scores).any():
            return self
        return replace(self, thresholds=label_metrics.best_thresholds(scores, targets))

    def headline(self, metrics: Mapping[str, float]) -> str:
        names = {
            "loss": "loss",
            "map": "mAP",
            "f1": "f1",
            "f1_micro": "micro f1",
            "exact_match": "exact match",
        }
        return "  ".join(f"{told} {metrics[name]:.4f}" for name, told in names.items())
