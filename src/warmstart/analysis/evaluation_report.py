"""What an evaluation of one class per image says beyond its metrics: averages over the classes, and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from warmstart import stats
from warmstart.tasks import metrics
from warmstart.tasks.classification import Classification

_TOP = 5


def results(task: Classification, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """`averages` (macro, weighted), and `intervals`: (low, high), 95 %, of both F1s, of top-5 and of each recall.

    Outputs (N, K) that predict nothing have neither.
    """
    averages = metrics.averages(task.table(outputs, targets))
    if not averages:
        return {"averages": {}, "intervals": {}}
    answers, num_classes = task.answers(outputs), len(task.classes)
    matrix = metrics.confusion(targets, answers, num_classes)
    intervals: dict[str, Any] = {f"f1_{name}": pair for name, pair in metrics.f1_intervals(matrix).items()}
    if num_classes > _TOP:
        order = np.argsort(-outputs, axis=1, kind="stable")[:, :_TOP]
        intervals["top5"] = stats.accuracy_interval((order == targets[:, None]).any(axis=1))
    intervals["recall"] = {
        name: stats.accuracy_interval(answers[targets == code] == code)
        for code, name in enumerate(task.classes)
        if (targets == code).any()
    }
    return {"averages": averages, "intervals": intervals}


def lines(found: dict[str, Any]) -> list[str]:
    """The intervals of `results` in words."""
    pairs = {name: found["intervals"].get(f"f1_{name}") for name in ("macro", "weighted")}
    told = [f"{name} f1 {pair[0]:.4f} to {pair[1]:.4f}" for name, pair in pairs.items() if pair is not None]
    return [f"95 % intervals: {', '.join(told)}"] if told else []
