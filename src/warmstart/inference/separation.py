"""How far the classes lie apart in front of the classifier: measured in passing, while outputs are computed.

Shapes: N samples, K classes, D features of an embedding.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_MOST_NAMED = 20  # classes in a row: the worst ones
_TWO = 2


class ClassSums:
    """Sums by class over the embeddings that go into a classifier, which it watches as a context manager.

    It is called as the `statistics` of a pass (inference/predictor.py), and hands the outputs on. The sums are
    float64 on the CPU, so their order is the samples': (K,) numbers, (K, D) sums, (K,) sums of squared lengths.
    """

    def __init__(self, head: nn.Module, num_classes: int) -> None:
        self._head, self._num_classes = head, num_classes
        self._embeddings: Tensor | None = None
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.squares = torch.zeros(num_classes, dtype=torch.float64)
        self.sums = torch.zeros(num_classes, 0, dtype=torch.float64)

    def __enter__(self) -> ClassSums:
        # After the layer: what comes before it may still be replaced in front of it (inference/cut.py).
        self._hook = self._head.register_forward_hook(self._look)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._hook.remove()
        self._embeddings = None

    def _look(self, _: nn.Module, arguments: tuple[Any, ...], __: Any) -> None:
        self._embeddings = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found, self._embeddings = self._embeddings, None
        if found is not None and found.ndim > 1 and len(found) == len(targets):
            self._add(vectors(found).to("cpu", torch.float64), targets.cpu().long())
        return outputs.clone()  # an output may share memory with the input, which the next batch overwrites

    def _add(self, embeddings: Tensor, targets: Tensor) -> None:
        if not self.sums.shape[1]:
            self.sums = torch.zeros(self._num_classes, embeddings.shape[1], dtype=torch.float64)
        self.counts.index_add_(0, targets, torch.ones(len(targets), dtype=torch.float64))
        self.sums.index_add_(0, targets, embeddings)
        self.squares.index_add_(0, targets, embeddings.square().sum(dim=1))


def vectors(embeddings: Tensor) -> Tensor:
    """(N, D): maps (N, D, h, w) in front of a convolution and tokens (N, T, D) by their means."""
    if embeddings.ndim == 3:
        return embeddings.mean(dim=1)
    return embeddings.flatten(2).mean(dim=2) if embeddings.ndim > 2 else embeddings


def separation(
    counts: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Measures of sums by class (K,), (K, D), (K,). With m_k the mean of the n_k embeddings x of class k:

    `fisher_ratio` = sum_k n_k |m_k - m|^2 / sum_k sum_x |x - m_k|^2, the trace of the scatter between classes over
    that within (Fisher 1936): the same at any scale. `fisher_document`, of two classes: |m_0 - m_1| / mean |x - m_k|^2,
    as document 001 has it; embeddings twice as long halve it. `separation` of a class: distance from its mean to the
    nearest other one, in units of its own spread (root mean |x - m_k|^2); of the 20 worst where there are more.
    Empty where fewer than two classes have samples.
    """
    present = np.flatnonzero(counts > 0)
    if len(present) < _TWO:
        return {}
    num, means = counts[present], sums[present] / counts[present, None]
    lengths = (means**2).sum(axis=1)
    within = np.maximum(squares[present] - num * lengths, 0)
    middle = (num[:, None] * means).sum(axis=0) / num.sum()
    between = (num * ((means - middle) ** 2).sum(axis=1)).sum()
    apart = np.maximum(lengths[:, None] + lengths - 2 * means @ means.T, 0)
    np.fill_diagonal(apart, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.sqrt(apart.min(axis=1) / (within / num))
        found: dict[str, Any] = {"fisher_ratio": float(between / within.sum())}
        if len(classes) == _TWO:
            distance = np.sqrt(((means[0] - means[1]) ** 2).sum())
            found["fisher_document"] = float(distance / (within.sum() / num.sum()))
    worst = np.argsort(own, kind="stable")[:_MOST_NAMED]
    found["separation"] = {classes[present[k]]: float(own[k]) for k in sorted(worst.tolist())}
    return found
