"""The layer of a map is found by what it gives and by what leads from it to the answer, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_clip import write_clip
from torch import nn

from tiny_families import built_of, images, made, side_of
from warmstart.analysis.explain.attention import rollout
from warmstart.analysis.explain.grad_cam import grad_cam, score_of
from warmstart.analysis.explain.layers import block_modules, find_layer, frozen, watched
from warmstart.config.schema import ModelConfig, TextConfig
from warmstart.errors import UserError
from warmstart.models.build import build
from warmstart.models.image_text.prompts import Texts

LAYERS = {
    "resnet": ("layer4", "2 x 2 places"),
    "mobilenetv3": ("blocks.5", "2 x 2 places"),
    "convnext": ("stages.3", "2 x 2 places"),
    "vit": ("blocks.1.norm1", "4 x 4 places"),
    "vit, mean": ("blocks.1", "4 x 4 places"),
    "vit, registers": ("blocks.1.norm1", "4 x 4 places"),
    "vit, pooling by attention": ("norm", "4 x 4 places"),
    "swin": ("norm", "4 x 4 places"),
    "torchvision vit": ("encoder.layers.encoder_layer_1.ln_1", "4 x 4 places"),
    "torchvision swin": ("norm", "4 x 4 places"),
    "transformers vit": ("vit.layers.2.layernorm_before", "4 x 4 places"),
    "transformers swin": ("swin.layernorm", "4 x 4 places"),
}


@pytest.mark.parametrize("family", LAYERS)
def test_the_layer_of_every_family(family: str) -> None:
    built, x = made(family), images(2, side_of(family))
    before = {name: p.requires_grad for name, p in built.module.named_parameters()}
    layer = find_layer(built, x, score_of(built, 1))
    assert (layer.path, str(layer.layout)) == LAYERS[family]
    heat = torch.stack([grad_cam(built.module, layer, x, score_of(built, number)) for number in range(3)])
    assert heat.shape == (3, 2, layer.layout.height, layer.layout.width)
    assert (heat >= 0).all() and heat.max() > 0
    assert {name: p.requires_grad for name, p in built.module.named_parameters()} == before
    assert all(p.grad is None for p in built.module.parameters())


@pytest.mark.parametrize("name", ["smp:Unet/resnet18", "builtin:microsegformer"])
def test_of_masks_it_is_the_coarsest(name: str) -> None:
    built = build(ModelConfig(name=name, weights="none"), {"image_size": (64, 96)}, ("a", "b"), 0)
    built.module.eval()
    layer = find_layer(built, images(1)[..., :64].repeat(1, 1, 1, 2)[..., :96], score_of(built, 1))
    assert (layer.layout.height, layer.layout.width) == (2, 3) and layer.finer is not None


def test_a_class_token_answers_alone_and_a_mean_by_all() -> None:
    vit, mean = made("vit"), made("vit, mean")
    alone = find_layer(vit, images(1, 32), score_of(vit, 0)).answering
    assert alone is not None and alone.nonzero().flatten().tolist() == [0]
    by_all = find_layer(mean, images(1, 32), score_of(mean, 0)).answering
    assert by_all is not None and by_all.nonzero().flatten().tolist() == list(range(1, 17))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layer5", "no such layer.*Did you mean 'layer[1-4]'"),
        ("fc", r"--layer fc gives \(3,\): no map over the image"),
        ("global_pool", "no map over the image.*for example layer4"),
    ],
)
def test_a_layer_that_gives_no_map_is_refused(path: str, message: str) -> None:
    built = made("resnet")
    with pytest.raises(UserError, match=f"(?s){message}"):
        find_layer(built, images(1), score_of(built, 0), path)


def test_another_layer_is_taken_at_its_word() -> None:
    built = made("resnet")
    layer = find_layer(built, images(1), score_of(built, 0), "layer2")
    assert (layer.path, str(layer.layout)) == ("layer2", "8 x 8 places")


def test_a_model_without_places_is_refused() -> None:
    with pytest.raises(UserError, match="no layer whose output lies over the image"):
        built = built_of(nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 3)), "2")
        find_layer(built, images(1, 4), score_of(built, 0))


class InPlace(nn.Module):
    """What it gives is changed in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mul_(2).relu_()


def test_what_is_watched_is_what_the_layer_gave() -> None:
    module, x = InPlace(), images(1)[:, :1]
    with torch.no_grad(), watched(module, ["conv"]) as outputs:
        found = module(x)
    assert (outputs["conv"] < 0).any(), "before what follows in place"
    assert torch.equal(outputs["conv"].mul(2).relu(), found)
    assert not module.conv._forward_hooks


def test_frozen_gives_back_what_was_trainable() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_the_modules_of_a_block_can_be_called() -> None:
    built = made("vit")
    paths = [path for block in built.blocks[:-1] for path in block_modules(built.module, block)]
    with torch.no_grad(), watched(built.module, paths) as outputs:
        built.module(images(1, 32))
    assert {"blocks.0", "blocks.1", "norm"} <= set(outputs)


@pytest.mark.parametrize("head", ["linear", "zero-shot", "contrastive"])
def test_of_an_image_text_model_it_is_the_image_tower_s(head: str, tmp_path: Path) -> None:
    """With as many prompts as images, so that the text tower's tokens could be taken for places."""
    write_clip(tmp_path, steps=0)
    classes = ("red_circle", "blue_square")
    built = build(ModelConfig(name=f"hf:{tmp_path}"), {}, classes, 0, text=Texts(TextConfig(head=head)))
    built.module.eval()
    x = images(2, 32)
    layer = find_layer(built, x, score_of(built, 1))
    assert layer.path.startswith("vision_model.") and layer.path.endswith("layer_norm1")
    assert layer.layout.prefix == 1
    heat = grad_cam(built.module, layer, x, score_of(built, 1))
    places = rollout(built.module, layer, x, built.name)
    assert heat.shape == places.shape and heat.max() > 0 and (places > 0).all()
