"""Quantised layers: arithmetic against torch's own, folding, and a file that makes the same model again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fresh
from quantised_models import images, made, plain, put_on_grids
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.methods.compress.ranges import find_grids, find_places
from warmstart.models.build import build, metadata_for
from warmstart.models.quantised import (
    QuantisedBatchNorm2d,
    QuantisedConv2d,
    channel_scales,
    grid_of,
    on_grid,
    quantised_layers,
    weight_on_grids,
)
from warmstart.models.recipe import QUANTISED, apply
from warmstart.models.tensor_file import TensorFile
from warmstart.records import Edit, Recipe
from warmstart.run.writer import write_whole


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.6), (0.2, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_activations_are_those_of_torch(low: float, high: float) -> None:
    grid = grid_of(low, high)
    x = images(2, 8).requires_grad_()
    wanted = torch.fake_quantize_per_tensor_affine(x, float(grid[0]), int(grid[1]), 0, 255)
    (wanted_gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    found = on_grid(x, grid)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(gradient, wanted_gradient, atol=1e-6)
    assert on_grid(torch.zeros(1), grid) == 0


def test_weights_are_those_of_torch_in_whole_steps() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        weight[2] = 0  # a channel that was pruned
    scales = channel_scales(weight, 63)
    wanted = torch.fake_quantize_per_channel_affine(
        weight, scales, torch.zeros(5, dtype=torch.int32), 0, -63, 63
    )
    found = weight_on_grids(weight, 63)
    assert torch.allclose(found, wanted, atol=1e-7)
    steps = found / scales.view(-1, 1, 1, 1)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert float(steps.detach().abs().max()) == pytest.approx(63)
    found.sum().backward()
    assert weight.grad is not None and (weight.grad == 1).all()


def test_places_follow_the_tensors() -> None:
    module = plain()
    places = find_places(module, images(2, 8), ["last"])
    assert places.layers == {"first": "norm", "second": "other", "third": "active", "tokens": ""}
    assert set(places.left) == {"last", "unused"}
    # What the second ReLU overwrites is the sum, not what came out of the norm.
    assert places.rectified == {"norm"}
    grids = find_grids(module, places, [images(4, 8)])
    inputs = {f"{path}.input_grid" for path in places.layers}
    assert set(grids) == inputs | {f"{path}.output_grid" for path in ("norm", "other", "active")}
    assert grids["norm.output_grid"][1] == 0
    assert grids["other.output_grid"][1] > 0


class Read(nn.Module):
    """A convolution whose output goes past its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.second, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.other(self.second(self.norm(x))) + x
        return found


def test_a_norm_is_folded_only_where_nobody_else_reads_the_convolution() -> None:
    places = find_places(Read(), images(2, 8), ())
    assert places.layers == {"first": "first", "second": "other"}


def test_evaluation_computes_what_training_does() -> None:
    """Norms with their running statistics, in float64: folded or not, one step of the grid apart at the edges."""
    module, given = plain().double(), images(4, 8).double()
    put_on_grids(module, given, ("last",))
    module.eval()
    folded = module.relu(module.norm(module.first(given)))
    norm = copy.deepcopy(module.norm).train()
    norm.momentum, norm.training = 0.0, True
    first: QuantisedConv2d = copy.deepcopy(module.first)
    first.__dict__["norm"] = norm
    raw = first(given)
    assert norm.weight is not None and norm.running_mean is not None and norm.running_var is not None
    wide = (1, -1, 1, 1)
    scaled = (raw - norm.running_mean.view(wide)) / (norm.running_var + norm.eps).sqrt().view(wide)
    wanted = on_grid(scaled * norm.weight.view(wide) + norm.bias.view(wide), norm.output_grid).relu()
    apart = (folded - wanted).abs() / norm.output_grid[0]
    assert apart.max() < 1.5
    assert (apart > 0.5).double().mean() < 0.01


def test_gradients_reach_every_weight() -> None:
    module, given = plain(), images(4, 8)
    put_on_grids(module, given, ("last",))
    for training in (True, False):
        module.train(training).zero_grad()
        module(given).square().sum().backward()
        names = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()}
        assert names == {"unused.weight", "unused.bias"}


def test_a_copy_is_a_model_of_its_own() -> None:
    module = plain()
    put_on_grids(module, images(4, 8))
    other = copy.deepcopy(module)
    assert other.first.norm is other.norm and other.norm is not module.norm
    assert isinstance(other.norm, QuantisedBatchNorm2d)
    assert list(other.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "smp:unet/resnet18"])
def test_a_file_makes_the_same_model_with_other_classes_too(name: str, tmp_path: Path) -> None:
    built, given = made(name, 64 if name.startswith("smp") else 32)
    file = tmp_path / "model.safetensors"
    write_whole(file, TensorFile(built.module.state_dict(), metadata_for(built)))
    again = build(ModelConfig(weights=str(file)), {}, None, 0)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(given), built.module.eval()(given))
    assert again.recipe == built.recipe
    assert len(quantised_layers(again.module)) == len(quantised_layers(built.module)) > 3
    other = build(ModelConfig(weights=str(file)), {}, ("b", "c", "d", "e"), 0)
    assert other.head_change.kept == ("b", "c")
    if not name.startswith("timm:resnet"):
        return
    wanted = built.module(given).detach()
    torch.save((given, wanted), tmp_path / "wanted.pt")
    done = fresh.run(
        code="import torch\n"
        "from warmstart.config.schema import ModelConfig\n"
        "from warmstart.models.build import build\n"
        f"images, wanted = torch.load({str(tmp_path / 'wanted.pt')!r})\n"
        f"built = build(ModelConfig(weights={str(file)!r}), {{}}, None, 0)\n"
        "assert torch.equal(built.module.eval()(images), wanted)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"nowhere": {"output": "", "levels": 63}}, "nowhere"),
        ({"first": {"output": "", "levels": 63}}, "first is a Conv2d"),
        ({"first": {"output": "relu", "levels": 63}}, "relu is a ReLU"),
        ({"norm": {"output": "norm", "levels": 63}}, "norm is a BatchNorm2d"),
        ({"first": {"output": "norm", "levels": 1000}}, "cannot become"),
        ({"first": {"output": 3, "levels": 63}}, "cannot become"),
    ],
)
def test_a_damaged_recipe_is_refused(layers: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(plain(), Recipe((Edit(QUANTISED, layers),)), "FILE")
