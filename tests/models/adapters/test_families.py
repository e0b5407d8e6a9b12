"""A matrix: families of vision models x LoRA. Each trains, is saved, restored with equal logits, and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny_transformers import STAGES, TOKENS, saved, tiny
from warmstart.adapt.apply import apply_stage, frozen_hash, set_modes
from warmstart.adapt.lora import choose_lora
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import Config, ModelConfig
from warmstart.engine.gradients import GradientWatch, zero_scale
from warmstart.engine.optimizer import make_optimizer
from warmstart.models.adapters.inject import adapted_layer
from warmstart.models.build import build, metadata_for, no_adapters
from warmstart.models.objects import keep

CLASSES = ("ant", "bee", "cat")
CPU = torch.device("cpu")


def torchvision_vit() -> str:
    from torchvision.models import VisionTransformer

    return keep(VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3), (32, 32))


def torch_encoder() -> str:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, 8)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    return keep(Encoder(), (32, 32))


def hf(family: str, folder: Path, **options: Any) -> str:
    return saved(tiny("ForImageClassification", family, num_labels=3, **options), folder)[0]


BY_NAME = """builtin:fashion_cnn timm:resnet18 timm:mobilenetv3_small_100 timm:convnext_atto timm:efficientvit_b0
    timm:vit_tiny_patch16_224 timm:mobilevit_xxs timm:swin_tiny_patch4_window7_224 torchvision:resnet18"""
NAMES: dict[str, Callable[[Path], str]] = {
    **{name: lambda _, name=name: name for name in BY_NAME.split()},
    "torchvision ViT": lambda _: torchvision_vit(),
    "torch encoder": lambda _: torch_encoder(),
    "hf ViT": lambda folder: hf("ViT", folder, **TOKENS),
    "hf CLIP": lambda folder: hf("CLIP", folder, vision_config=TOKENS, projection_dim=8),
    "hf ConvNeXt": lambda folder: hf("ConvNext", folder, **STAGES),
}
SIZES = {"timm:swin_tiny_patch4_window7_224": 56, "timm:mobilevit_xxs": 64, "timm:efficientvit_b0": 64}
CASES = [
    *((name, {}) for name in NAMES),
    ("timm:resnet18", {"kind": "dora"}),
    ("timm:vit_tiny_patch16_224", {"kind": "dora", "dropout": 0.1}),
    ("timm:vit_tiny_patch16_224", {"kind": "rslora", "targets": "all-linear"}),
    ("timm:convnext_atto", {"targets": "stages.3.*", "dropout": 0.2}),
    ("torch encoder", {"targets": "all-linear"}),
]


@pytest.fixture(autouse=True)
def _calm(one_thread: None) -> None:
    """Tiny models are fastest so."""


@pytest.mark.parametrize(
    ("name", "lora"), CASES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in CASES]
)
def test_family(name: str, lora: dict[str, Any], tmp_path: Path) -> None:
    config = Config.model_validate({"lora": {"rank": 2, **lora}, "optim": {"lr": 1e-2, "weight_decay": 0}})
    called = NAMES[name](tmp_path / "model")
    settings = ModelConfig(name=called, weights=None if called.startswith("object:") else "none")
    size = SIZES.get(name, 32)
    overrides = {"image_size": (size, size)}
    built = build(settings, overrides, CLASSES, 0, choose=choose_lora(config))
    built.move_to(CPU)
    module, blocks = built.module, built.blocks
    assert built.lora is not None and built.lora.targets
    sizes = {key: tuple(p.shape) for key, p in module.named_parameters()}
    plan = make_plan(blocks, sizes, config.adapt, config.optim)
    assert {row.mode for row in plan.rows[:-1]} <= {"lora", "frozen"} and plan.rows[-1].mode == "full"

    # The base stays, buffers too; every adapter has a gradient, but for those behind a scale of zero.
    start = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    groups = apply_stage(module, plan, 0)
    optimizer = make_optimizer(config.optim, groups, CPU)
    watch, before = GradientWatch(optimizer, module), frozen_hash(module, plan, blocks, 0)
    images = torch.randn(6, built.preprocessing.num_channels, size, size)
    targets = torch.arange(6) % 3
    for _ in range(2):
        set_modes(module, plan, blocks, 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), targets).backward()
        watch.look()
        optimizer.step()
    assert frozen_hash(module, plan, blocks, 0) == before and not watch.silent_blocks()
    assert all(zero_scale(module, path) is not None for path in watch.silent_adapters())
    trained = {key for row in plan.rows for key in row.trainable}
    moved = {key for key, tensor in module.state_dict().items() if not torch.equal(tensor, start[key])}
    assert moved <= trained and moved >= set(blocks[-1].parameters)
    assert {adapted_layer(key) for key in moved} - {None} == {
        path for key in trained if (path := adapted_layer(key)) not in {None, *watch.silent_adapters()}
    }

    # Saved and restored: the same logits to the bit, whatever seed the process has; merged: to rounding.
    file = tmp_path / "model.safetensors"
    state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    save_file(state, file, metadata_for(built))
    torch.manual_seed(9)
    again = build(ModelConfig(weights=str(file)), {}, None, seed=99)
    plain = build(ModelConfig(weights=str(file)), {}, None, seed=99, choose=no_adapters)
    assert again.lora == built.lora and plain.lora is None
    assert plain.notes[-1].startswith("merged the adapters of")
    for each in (again, plain):
        each.move_to(CPU)
    with torch.no_grad():
        outputs, restored, merged = (each.module.eval()(images) for each in (built, again, plain))
        bare = build(settings, overrides, CLASSES, 0)
        bare.move_to(CPU)
    assert torch.equal(outputs, restored)
    torch.testing.assert_close(merged, outputs, rtol=1e-4, atol=1e-4)
    assert set(plain.module.state_dict()) == set(bare.module.state_dict())


def test_silent_adapters_are_named_with_the_scale_that_silences_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """timm makes the last norm of every residual branch zero in a ResNet without weights; those of files are not."""
    config = Config.model_validate({"lora": {"rank": 2}})
    settings = ModelConfig(name="timm:resnet18", weights="none")
    built = build(settings, {"image_size": (32, 32)}, CLASSES, 0, choose=choose_lora(config))
    sizes = {key: tuple(p.shape) for key, p in built.module.named_parameters()}
    plan = make_plan(built.blocks, sizes, config.adapt, config.optim)
    optimizer = make_optimizer(config.optim, apply_stage(built.module, plan, 0), CPU)
    watch = GradientWatch(optimizer, built.module)
    set_modes(built.module, plan, built.blocks, 0)
    built.module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    watch.look()
    silent = watch.silent_adapters()
    assert "layer1.0.conv1" in silent and "layer1.0.conv2" in silent
    assert "conv1" not in silent and "layer2.0.downsample.0" not in silent and len(silent) == 16
    with caplog.at_level("WARNING"):
        watch.report()
    assert "2 adapters had no gradient in 1 steps" in caplog.text
    assert "multiplied by layer1.0.bn2.weight, which is zero" in caplog.text
