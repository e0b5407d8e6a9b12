"""The tail of a cut model is the rest of the model: same outputs, same gradients, in training too."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.adapt.plan import Plan, make_plan
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig
from warmstart.inference.cut import Cut, NoCut, Tail, prefix_features
from warmstart.inference.find_cut import find_cut
from warmstart.models.build import BuiltModel, build

MODELS = [
    "builtin:fashion_cnn",
    "timm:mobilenetv3_small_050",
    "timm:resnet10t",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
]


def make(name: str, num_trained: int, dropout: float | None = None) -> tuple[BuiltModel, Plan]:
    size = (28, 28) if "fashion" in name else (64, 64)
    built = build(
        ModelConfig(name=name, weights="none", dropout=dropout), {"image_size": size}, ("a", "b", "c"), 0
    )
    sizes = {path: tuple(p.shape) for path, p in built.module.named_parameters()}
    frozen = tuple(block.name for block in built.blocks[:-num_trained])
    return built, make_plan(built.blocks, sizes, AdaptConfig(freeze=frozen), OptimConfig())


def cut_of(built: BuiltModel, plan: Plan) -> tuple[Cut, torch.Tensor]:
    torch.manual_seed(1)
    height, width = built.preprocessing.image_size
    dtype = next(built.module.parameters()).dtype
    images = torch.randn(5, built.preprocessing.num_channels, height, width, dtype=dtype)
    frozen = [
        path for block in built.blocks if plan.row(block.name).mode == "frozen" for path in block.modules
    ]
    trained = list(dict.fromkeys(name.rpartition(".")[0] for row in plan.rows for name in row.trainable))
    cut = find_cut(
        built.module, frozen, trained, images, lambda: set_modes(built.module, plan, built.blocks, 0)
    )
    return cut, images


@pytest.mark.parametrize("num_trained", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_tail_learns_what_the_whole_model_learns(name: str, num_trained: int, one_thread: None) -> None:
    built, plan = make(name, num_trained)
    cut, images = cut_of(built, plan)
    compare(built, plan, cut, images)


SEGMENTERS = {
    ("builtin:microsegformer", "patch_embed*,block*"): "output of norm1, norm2, norm3 and norm4",
    ("builtin:microsegformer", "patch_embed1,block1,patch_embed2"): "output of norm1 and patch_embed2",
    ("smp:Unet/resnet18", "encoder*"): "output of encoder",
    ("smp:Unet/resnet18", "encoder.conv1,encoder.layer1"): "output of encoder.bn1 and encoder.layer1",
    ("torchvision:fcn_resnet50", "backbone*"): "input of classifier.0",
    ("torchvision:deeplabv3_mobilenet_v3_large", "backbone*"): "output of backbone.16",
}


@pytest.mark.parametrize(("name", "freeze"), SEGMENTERS)
def test_maps_for_a_decoder(name: str, freeze: str, one_thread: None) -> None:
    built = build(ModelConfig(name=name, weights="none"), {"image_size": (64, 64)}, ("a", "b", "c"), 0)
    sizes = {path: tuple(p.shape) for path, p in built.module.named_parameters()}
    plan = make_plan(built.blocks, sizes, AdaptConfig(freeze=tuple(freeze.split(","))), OptimConfig())
    built.module.double()
    cut, images = cut_of(built, plan)
    assert cut.name == SEGMENTERS[name, freeze]
    assert Cut.from_json(json.loads(json.dumps(asdict(cut)))) == cut
    compare(built, plan, cut, images)


def compare(built: BuiltModel, plan: Plan, cut: Cut, images: torch.Tensor) -> None:
    """Outputs and gradients of the whole model and of its tail, in training."""
    groups = apply_stage(built.module, plan, 0)
    features = prefix_features(built.module, cut, images).clone()
    gradients = []
    for module, given in (
        (built.module, images),
        (Tail(built.module, cut, tuple(images.shape[1:])), features),
    ):
        set_modes(built.module, plan, built.blocks, 0)
        torch.manual_seed(3)
        outputs = module(given.clone())
        outputs.square().sum().backward()
        parameters = [p for group in groups for p in group.parameters]
        gradients.append([outputs.detach(), *(p.grad.clone() for p in parameters if p.grad is not None)])
        built.module.zero_grad()
    assert len(gradients[0]) == len(gradients[1]) > 1
    for whole, tail in zip(*gradients, strict=True):
        assert torch.allclose(whole, tail, rtol=1e-3, atol=1e-4 * float(whole.abs().max()) + 1e-6)


def test_dropout_before_the_head_stays_behind_the_cut() -> None:
    names = {}
    for dropout in (0.0, 0.5):
        built, plan = make("timm:resnet10t", 1, dropout)
        cut, images = cut_of(built, plan)
        names[dropout] = cut.name
        if dropout:
            tail = Tail(built.module, cut, tuple(images.shape[1:]))
            features = prefix_features(built.module, cut, images).clone()
            set_modes(built.module, plan, built.blocks, 0)
            assert not torch.equal(tail(features.clone()), tail(features.clone()))
    assert names == {0.0: "input of fc", 0.5: "output of layer4"}


def test_the_model_is_as_it_was_afterwards() -> None:
    built, plan = make("timm:resnet10t", 2)
    before = {name: tensor.clone() for name, tensor in built.module.state_dict().items()}
    cut, images = cut_of(built, plan)
    Tail(built.module, cut, tuple(images.shape[1:]))(prefix_features(built.module, cut, images).clone())
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.module.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in built.module.modules())
    assert not any("forward" in vars(module) for module in built.module.modules())


class Turns(nn.Module):
    """first -> second, and first again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)) + x)


def test_what_cannot_be_cut_says_why() -> None:
    model, images = Turns(), torch.randn(3, 4)
    with pytest.raises(NoCut, match="second is frozen and computed after first, which trains"):
        find_cut(model, ["second"], ["first", "third"], images, model.train)
    with pytest.raises(NoCut, match="no frozen module comes before"):
        find_cut(model, [], ["first", "second", "third"], images, model.train)
    with pytest.raises(NoCut, match="cut at the output of first, the model gives something else"):
        # The images are used behind the cut.
        find_cut(model, ["first"], ["second", "third"], images, model.train)


class Encoder(nn.Module):
    """A frozen encoder with something random between its layers, which gives both layers' outputs."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.first(x)
        return [x, self.second(self.dropout(x).relu_())]


class Decoded(nn.Module):
    def __init__(self, rate: float = 0.0, output: str = "sum") -> None:
        super().__init__()
        self.encoder, self.decoder, self.output = Encoder(rate), nn.Linear(4, 2), output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.encoder(x)
        return self.decoder(second) + (first.sum(1, keepdim=True) if self.output == "sum" else 0)


def test_only_what_is_used_is_kept_and_of_the_largest_frozen_module() -> None:
    images, layers = torch.randn(3, 4), ["encoder.first", "encoder.second"]
    model = Decoded()
    cut = find_cut(model, layers, ["decoder"], images, model.train)
    assert cut.kept == {"encoder": (True, True)}
    assert prefix_features(model, cut, images).shape == (3, 8)
    cut = find_cut(Decoded(output="last"), layers, ["decoder"], images, model.train)
    assert (cut.name, cut.shapes) == ("input of decoder", ())


def test_what_is_random_in_training_is_no_feature() -> None:
    """Dropout of the encoder is outside of its frozen layers, so it stays at work between them."""
    model = Decoded(rate=0.5)
    with pytest.raises(NoCut, match="the model gives something else"):
        find_cut(model, ["encoder.first", "encoder.second"], ["decoder"], torch.randn(5, 4), model.train)
