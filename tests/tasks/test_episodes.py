"""Episodes as a task: loss, accuracy with its interval, and the gradient that is not the loss's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from warmstart.tasks.episodes import Adapted, Episodes

TASK = Episodes(("one", "two", "three"), query=2)
LABELS = [0, 0, 1, 1, 2, 2]


def test_the_loss_is_the_cross_entropy_of_the_places() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64)
    loss_sum, weight = TASK.objective(logits, torch.zeros(99))
    expected = sum(math.log(row.exp().sum()) - row[label] for row, label in zip(logits, LABELS, strict=True))
    assert float(weight) == 6 and float(loss_sum) == pytest.approx(float(expected), rel=1e-12)


def test_a_pull_is_the_gradient_and_leaves_the_value() -> None:
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(6, 3, dtype=torch.float64)
    loss_sum, _ = TASK.objective(Adapted(logits, 5 * weight), torch.zeros(1))
    plain, _ = TASK.objective(logits, torch.zeros(1))
    assert float(loss_sum.detach()) == float(plain)
    loss_sum.backward()
    assert float(weight.grad) == 6 * 5


def test_accuracy_is_the_mean_of_the_episodes_with_the_interval_of_the_field() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40 * 6, 3)).astype(np.float32)
    shares = [
        np.mean([row.argmax() == label for row, label in zip(logits[6 * e : 6 * e + 6], LABELS, strict=True)])
        for e in range(40)
    ]
    found = TASK.evaluate(logits, np.zeros(0))
    half = 1.96 * np.std(shares, ddof=1) / math.sqrt(40)
    assert found["accuracy"] == pytest.approx(np.mean(shares)) and found["episodes"] == 40
    assert found["accuracy_low"] == pytest.approx(np.mean(shares) - half, abs=1e-6)
    assert found["accuracy_high"] == pytest.approx(np.mean(shares) + half, abs=1e-6)
    assert math.isnan(TASK.evaluate(np.full((6, 3), np.nan, np.float32), np.zeros(0))["accuracy"])
