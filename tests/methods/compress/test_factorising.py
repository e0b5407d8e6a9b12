"""Low rank: the nearest product, what it costs, and what another round makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.config.compress_section import CompressConfig
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference
from warmstart.inference.restore import Restored
from warmstart.methods.compress.factorising import _of_layer, _of_pair, _product, factorise
from warmstart.methods.compress.subject import Subject
from warmstart.models.blocks import find_blocks
from warmstart.models.build import build
from warmstart.models.macs import count_macs
from warmstart.models.objects import keep
from warmstart.models.recipe import FACTORISE, LOW_RANK, RESIZE, SEPARABLE
from warmstart.records import Recipe


def subject(name: str, weights: str | None = "none", **settings: Any) -> Subject:
    built = build(ModelConfig(name=name, weights=weights), {"image_size": (32, 32)}, ("a", "b", "c"), seed=0)
    built.module.eval()
    restored = Restored(built, WeightsReference(None), overridden=False)
    return Subject(restored, {}, CompressConfig(method="factorise", **settings))


def matrix(layer: nn.Conv2d, form: str) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    if form == LOW_RANK:
        return weight.reshape(len(weight), -1)
    return weight.transpose(1, 2, 0, 3).reshape(weight.shape[1] * weight.shape[2], -1)


@pytest.mark.parametrize("form", [LOW_RANK, SEPARABLE])
def test_the_product_is_the_nearest_of_its_rank(form: str) -> None:
    """By numpy, in float64: the distance is that of the singular values left out; the bias stays."""
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3, padding=1).double()
    pair = _product(layer, _of_layer(layer, form, 100.0, 1.0), 4)
    first, second = (part.weight.detach().numpy() for part in pair)
    if form == LOW_RANK:
        product = second[:, :, 0, 0] @ first.reshape(4, -1)
    else:
        product = first[..., 0].reshape(4, -1).T @ second[:, :, 0].transpose(1, 0, 2).reshape(4, -1)
    values = np.linalg.svd(matrix(layer, form), compute_uv=False)
    wanted = np.sqrt((values[4:] ** 2).sum())
    assert np.linalg.norm(product - matrix(layer, form)) == pytest.approx(wanted, rel=1e-10)
    assert torch.equal(pair[1].bias, layer.bias)
    again = _of_pair(pair, form, 100.0)
    np.testing.assert_allclose(np.sqrt(again.energies.numpy()), values[:4], rtol=1e-10)


def test_the_rank_keeps_the_energy() -> None:
    layer = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0])))  # energies 9, 4, 1 of 14
    found = _of_layer(layer, LOW_RANK, 9.0, 1.0)
    assert [found.rank_at(energy) for energy in (0.5, 9 / 14 + 1e-9, 0.9, 0.95, 1.0)] == [1, 2, 2, 3, 3]
    assert found.cost_at(0.5) == 6.0
    assert found.cost_at(0.9) == 9.0  # two ranks would cost 12


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext"])
def test_the_share_of_macs_is_gone(name: str) -> None:
    given = subject(name)
    made = factorise(given, 0.3)
    before, after = (
        count_macs(module, given.example()) for module in (given.built.module, made.module.eval())
    )
    assert after == pytest.approx(0.7 * before, rel=0.03)
    assert after <= 0.7 * before
    assert [edit.kind for edit in made.edits] == [FACTORISE]
    assert given.built.head not in made.edits[0].layers


def test_another_round_makes_ranks_smaller_and_no_layer_four() -> None:
    given = subject("timm:test_resnet")
    first = factorise(given, 0.3)
    blocks = find_blocks(first.module.eval(), given.built.head)
    built = replace(given.built, module=first.module, blocks=blocks, recipe=Recipe(first.edits))
    second = factorise(replace(given, restored=replace(given.restored, built=built)), 0.3)
    assert RESIZE in [edit.kind for edit in second.edits]
    for path in first.edits[0].layers:
        parts = list(second.module.get_submodule(path))
        assert all(isinstance(part, (nn.Linear, nn.Conv2d)) for part in parts)
        assert len(parts) == 2
    images = given.example()
    assert count_macs(second.module.eval(), images) <= 0.7 * count_macs(first.module, images)


def test_energy_says_the_ranks() -> None:
    given = subject("timm:test_resnet", energy=0.5)
    made = factorise(given, 0.01)
    assert "keep 0.5 of their energy" in made.notes[0]
    with pytest.raises(UserError, match=r"at an energy of 0\.9999 no layer"):
        factorise(subject("timm:test_vit", energy=0.9999), 0.5)


def test_layers_are_named_by_block_path_or_glob() -> None:
    by_block = factorise(subject("timm:test_resnet", layers="layer4.0"), 0.05)
    assert by_block.edits[0].layers
    assert all(path.startswith("layer4.0") for path in by_block.edits[0].layers)
    kept = factorise(subject("timm:test_resnet", keep="layer4.*,layer3.*"), 0.05)
    assert not any(path.startswith(("layer3", "layer4")) for path in kept.edits[0].layers)


class Reader(nn.Module):
    """Computes with the weight of a layer by itself, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 32, 8, 8), nn.Linear(512, 64)
        self.called, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(self.stem(x).flatten(1), self.read.weight, self.read.bias)
        logits: Tensor = self.head(self.called(x))
        return logits


def test_weights_that_are_never_called_stay_whole() -> None:
    given = subject(keep(Reader(), (32, 32)), None)
    made = factorise(given, 0.01)
    assert list(made.edits[0].layers) == ["called"]
    assert made.module(given.example()).shape == (1, 3)
