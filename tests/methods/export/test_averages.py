"""Averages beside the weights: which tensor of the model each of them is of."""

from __future__ import annotations

import pytest
import torch

from warmstart.methods.export.averages import averages


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        (("state_dict", "fc.weight"), ("state_dict_ema", "fc.weight")),  # timm
        (("model", "module.fc.weight"), ("model_ema", "module.fc.weight")),  # torchvision
        (("state_dict", "module.fc.weight"), ("ema", "shadow", "fc.weight")),
        (("state_dict", "model.fc.weight"), ("state_dict", "ema.fc.weight")),  # Lightning
        (("state_dict", "model.fc.weight"), ("state_dict", "ema_model.module.fc.weight")),
    ],
    ids=str,
)
def test_an_average_is_found(plain: tuple[str, ...], average: tuple[str, ...]) -> None:
    tensor = torch.zeros(2)
    others = {("f", "optimizer", "fc.weight"): tensor, ("f", *average[:-1], "fc.bias"): tensor}
    found = averages({("f", *plain): tensor, ("f", *average): tensor, **others}, {"head": ("f", *plain)})
    assert found == {("f", *average): "head"}
    # A file without others: the average is what was read.
    assert averages({("f", *average): tensor}, {"head": ("f", *average)}) == {}
