"""The penalty's formula against autograd in float64, and that a step adds it once, however its window is cut."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from warmstart.data.batches import Batch
from warmstart.engine.lessons.penalty import Penalty
from warmstart.engine.step import Arithmetic, train_window
from warmstart.tasks.classification import Classification
from warmstart.tasks.objectives import weight_of

PLAIN = Classification(("ant", "bee"))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def held(module: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]]:
    """Starts and Fisher information that differ from parameter to parameter."""
    generator = torch.Generator().manual_seed(1)

    def random(parameter: nn.Parameter) -> torch.Tensor:
        return torch.rand(parameter.shape, generator=generator, dtype=torch.float64)

    return [(parameter, random(parameter), random(parameter)) for parameter in module.parameters()]


def formula(rows: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]], l2sp: float, ewc: float):
    """As the papers write it."""
    return sum(((l2sp + ewc * fisher) / 2 * (p - start) ** 2).sum() for p, start, fisher in rows)


@pytest.mark.parametrize(("l2sp", "ewc"), [(0.3, 0.0), (0.0, 2.0), (0.3, 2.0)])
def test_gradient_and_value_are_those_of_the_formula(l2sp: float, ewc: float) -> None:
    module = model()
    rows = held(module)
    expected = torch.autograd.grad(formula(rows, l2sp, ewc), list(module.parameters()))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    penalty = Penalty(rows, l2sp, ewc)
    penalty.add_gradients(torch.tensor(3.0, dtype=torch.float64))
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + 3 * gradient, rtol=1e-12, atol=1e-14)
    values = penalty.values()
    assert set(values) == {name for name, weight in (("l2sp", l2sp), ("ewc", ewc)) if weight}
    assert sum(values.values()) == pytest.approx(formula(rows, l2sp, ewc).item(), rel=1e-12)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    module = model()
    Penalty(held(module), l2sp=1.0).add_gradients(torch.tensor(1.0))
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("cut", [[12], [5, 7], [1, 2, 3, 6]])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("weights", [None, (4.0, 0.5)])
def test_a_step_adds_it_once(cut: list[int], clip: float | None, weights: tuple[float, float] | None) -> None:
    """One step of gradient descent on .25 mean loss + penalty + two lessons, against autograd over the whole window.

    Class weights are those of the loss: a lesson is the mean over items with them as well.
    """
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(12, 5)), rng.integers(0, 2, 12)
    module, teacher, task = model(), model(), replace(PLAIN, class_weights=weights)
    rows = held(module)

    class Taught:
        names, hard = ("one", "two"), 0.25
        watch = nullcontext

        def __call__(self, batch: Batch, given: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
            distance = outputs - teacher(given).detach() - 1
            return torch.stack([0.7 * (distance**2).sum(), 0.2 * distance.abs().sum()])

    outputs = module(torch.from_numpy(inputs))
    by_class = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = nn.functional.cross_entropy(outputs, torch.from_numpy(targets), by_class)
    whole = Batch(inputs, targets, np.arange(12, dtype=np.uint64), np.arange(12))
    lessons = Taught()(whole, torch.from_numpy(inputs), outputs, torch.from_numpy(targets)) / 12
    loss = 0.25 * loss + lessons.sum() + formula(rows, 0.4, 1.5)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    norm = float(nn.utils.get_total_norm(gradients))
    factor = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
    expected = [p.detach() - 0.1 * factor * g for p, g in zip(module.parameters(), gradients, strict=True)]
    ends = np.cumsum(cut)[:-1]
    batches = [
        Batch(images, labels, np.arange(len(labels), dtype=np.uint64), np.arange(len(labels)))
        for images, labels in zip(np.split(inputs, ends), np.split(targets, ends), strict=True)
    ]
    arithmetic = Arithmetic(clip=clip, penalty=Penalty(rows, 0.4, 1.5), lessons=Taught())
    if by_class is not None:
        arithmetic = replace(
            arithmetic, weigh=lambda t: (weight_of(t, by_class), weight_of(t, torch.ones_like(by_class)))
        )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    result = train_window(module, batches, torch.from_numpy, task.objective, optimizer, arithmetic)
    for parameter, value in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-8)
    assert float(result.grad_norm) == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(
        result.taught_sums / result.weight, lessons.detach().float(), rtol=1e-5, atol=1e-8, check_dtype=False
    )
