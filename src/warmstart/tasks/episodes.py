"""Episodes as a task: the class of an image is its place in the episode, and every episode has other classes there.

Shapes: E episodes, W classes of each (the way), Q query images of a class; rows are class by class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart import stats
from warmstart.tasks import objectives


class Adapted(NamedTuple):
    """What an episode gives where the gradient is not that of the query images' loss.

    `logits` (W * Q, W) have no gradient; the gradient of the scalar `pull` is what the episode moves the weights by.
    """

    logits: Tensor
    pull: Tensor


def labels_of(way: int, num: int, device: torch.device) -> Tensor:
    """int64 (way * num,): the classes of `num` images each, class by class."""
    return torch.arange(way, device=device).repeat_interleave(num)


@dataclass(frozen=True)
class Episodes:
    """Query images answered after a look at the support images; `classes` are the places in an episode."""

    classes: tuple[str, ...]
    query: int
    label_smoothing: float = 0.0

    name = "episodes"
    statistics = None
    class_weights = None
    metrics = ("accuracy", "loss")
    columns = ()

    def objective(self, outputs: Tensor | Adapted, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss_sum, weight) of one episode: cross entropy of the query logits (W * Q, W); the targets play no part.

        Where `outputs` are `Adapted`, the value is the same, and the gradient is that of W * Q times the `pull`.
        """
        logits, pull = outputs if isinstance(outputs, Adapted) else (outputs, None)
        labels = labels_of(len(self.classes), self.query, logits.device)
        loss_sum, weight = objectives.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if pull is not None:
            loss_sum = loss_sum.detach() + len(labels) * (pull - pull.detach())
        return loss_sum, weight

    def evaluate(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
        """Of logits (E * W * Q, W): the mean accuracy of the episodes with its 95 % interval over them, and the loss.

        The interval is that of the field: mean +- 1.96 standard deviations / sqrt(E). The targets play no part.
        """
        if not np.isfinite(logits).all():
            return dict.fromkeys(
                ("loss", "accuracy", "accuracy_low", "accuracy_high", "episodes"), float("nan")
            )
        shares = self.scores(logits)[:, 0].astype(np.float64)
        low, high = stats.mean_interval(shares)
        exact = torch.from_numpy(logits).double()
        labels = labels_of(len(self.classes), self.query, exact.device).repeat(len(shares))
        loss_sum, weight = objectives.cross_entropy(exact, labels)
        return {
            "loss": float(loss_sum / weight),
            "accuracy": float(shares.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "episodes": len(shares),
        }

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(E, 1): the share of right answers of each episode, which is what is kept of it."""
        way = len(self.classes)
        right = logits.argmax(axis=1).reshape(-1, way, self.query) == np.arange(way)[:, None]
        return right.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None]

    def table(self, logits: NDArray[np.float32], targets: NDArray[Any]) -> list[dict[str, Any]]:
        """No rows: the places of an episode mean nothing."""
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        m = metrics
        return (
            f"loss {m['loss']:.4f}  accuracy {m['accuracy']:.4f} [{m['accuracy_low']:.4f}, {m['accuracy_high']:.4f}] "
            f"over {m['episodes']:.0f} episodes"
        )
