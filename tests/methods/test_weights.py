"""Arithmetic on weights, against plain float64 formulas."""

from __future__ import annotations

import torch
from torch import nn

from warmstart.methods.weights import average, between, estimate_statistics, running_norms


def states(number: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "w": torch.randn(3, 4, generator=generator),
            "n": torch.tensor(index),
            "h": torch.randn(2, generator=generator),
        }
        for index in range(number)
    ]


def test_a_blend_lies_on_the_line_and_its_ends_are_exact() -> None:
    start, tuned = states(2)
    middle = between(start, tuned, 0.3)
    expected = 0.7 * start["w"].double() + 0.3 * tuned["w"].double()
    assert torch.equal(middle["w"], expected.float()) or (middle["w"] - expected).abs().max() < 1e-7
    assert torch.equal(between(start, tuned, 0.0)["w"], start["w"])
    assert torch.equal(between(start, tuned, 1.0)["w"], tuned["w"])
    assert middle["n"] == tuned["n"], "a counter is nothing to blend"
    assert torch.equal(between(start, tuned, 0.3, kept=("h",))["h"], tuned["h"])


def test_an_average_is_the_mean_in_float64() -> None:
    found = average(states(5))
    expected = sum(state["w"].double() for state in states(5)) / 5
    assert (found["w"] - expected).abs().max() < 1e-7 and found["n"] == 4


def test_statistics_are_those_of_the_inputs_and_dropout_does_not_touch_them() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3), nn.Linear(3, 2))
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 3 + 2
    batches = [inputs[:20], inputs[20:39], inputs[39:]]  # the last one has one image: passed over
    estimate_statistics(module, batches)
    means = torch.stack([batch.double().mean(dim=0) for batch in batches[:2]]).mean(dim=0)
    variances = torch.stack([batch.double().var(dim=0) for batch in batches[:2]]).mean(dim=0)
    (norm,) = running_norms(module)
    assert norm.running_mean is not None and norm.running_var is not None
    assert (norm.running_mean - means).abs().max() < 1e-5
    assert (norm.running_var - variances).abs().max() < 1e-5
    assert norm.momentum == 0.1 and not module.training and not norm.training
