from __future__ import annotations

import torch
from torch import nn

from warmstart.models.without_values import without_values


def test_shapes_are_those_of_the_model_and_nobody_else_s_random_numbers_are_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with without_values():
        hollow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
        real = nn.init.normal_(torch.zeros(4, device="cpu"))
    assert torch.equal(torch.rand(3), expected)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    assert {k: (v.shape, v.device.type) for k, v in hollow.state_dict().items()} == {
        k: (v.shape, "meta") for k, v in whole.state_dict().items()
    }
    assert real.abs().sum() > 0, "tensors that have values are filled"
