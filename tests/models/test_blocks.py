from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from warmstart.models.blocks import find_blocks
from warmstart.models.zoo import create, outline
from warmstart.records import Block

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
STAGES = ("stem", "stages.0", "stages.1", "stages.2", "stages.3", "head")


def _numbered(prefix: str, count: int, *tail: str) -> tuple[str, ...]:
    return ("stem", *(f"{prefix}.{i}" for i in range(count)), *tail, "head")


FAMILIES = {
    "mobilenetv3_small_100": _numbered("blocks", 6, "conv_head"),
    "resnet18": LAYERS,
    "resnet10t": LAYERS,
    "vit_tiny_patch16_224": _numbered("blocks", 12),
    "deit_tiny_patch16_224": _numbered("blocks", 12),
    "eva02_tiny_patch14_224": _numbered("blocks", 12),  # a buffer at the root, no classifier by default
    "convnext_atto": STAGES,
    "efficientnet_b0": _numbered("blocks", 7),
    "swin_tiny_patch4_window7_224": _numbered("layers", 4),
    "regnetx_002": ("stem", "s1", "s2", "s3", "s4", "head"),
    "densenet121": ("stem", *(f"features.denseblock{i}" for i in range(1, 5)), "head"),
    "mixer_s32_224": _numbered("blocks", 8),
    "ghostnet_100": _numbered("blocks", 9, "conv_head"),
    "vgg11": ("stem", *(f"features.{i}" for i in (3, 6, 8, 11, 13, 16, 18)), "pre_logits", "head"),
    "selecsls42": _numbered("features", 6, "head.2"),  # the last stage is called head there
    "dla34": ("stem", *(f"level{i}" for i in range(6)), "head"),  # the classifier is a 1x1 convolution
    "poolformer_s12": STAGES,  # no group_matcher
    "pit_ti_224": ("patch_embed", "transformers.0", "transformers.1", "transformers.2", "head"),
}


def _check(module: nn.Module, blocks: tuple[Block, ...], head: str) -> None:
    """What every plan relies on, for any model."""
    assert sorted(chain(*(b.parameters for b in blocks))) == sorted(n for n, _ in module.named_parameters())
    assert sorted(chain(*(b.buffers for b in blocks))) == sorted(n for n, _ in module.named_buffers())
    assert len({b.name for b in blocks}) == len(blocks)
    assert blocks[-1].name == "head"
    assert all(name.startswith(f"{head}.") for name in blocks[-1].parameters)
    for block in blocks:
        module.train()
        for path in block.modules:
            module.get_submodule(path).eval()
        stilled = {path for path, m in module.named_modules() if not m.training}
        assert set(block.norms) <= stilled
        for path in stilled:
            tensors: list[tuple[str, Any]] = [
                *module.get_submodule(path).named_parameters(path, recurse=False),
                *module.get_submodule(path).named_buffers(path, recurse=False),
            ]
            assert {name for name, _ in tensors} <= {*block.parameters, *block.buffers}
    norms = {
        path for path, m in module.named_modules() if isinstance(m, _NormBase) and m.running_mean is not None
    }
    assert norms == set(chain(*(b.norms for b in blocks)))
    assert len(norms) == sum(len(b.norms) for b in blocks)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_families(name: str) -> None:
    import timm

    with torch.device("meta"):
        module = timm.create_model(name, num_classes=2)
    head = outline(f"timm:{name}").head
    blocks = find_blocks(module, head)
    assert tuple(block.name for block in blocks) == FAMILIES[name]
    _check(module, blocks, head)


def test_final_norm_belongs_to_the_last_stage() -> None:
    import timm

    with torch.device("meta"):
        module = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    blocks = find_blocks(module, "head")
    assert {"norm.weight", "norm.bias"} <= set(blocks[-2].parameters)
    assert {"cls_token", "pos_embed"} <= set(blocks[0].parameters)
    assert {"blocks.11", "norm"} <= set(blocks[-2].modules)
    assert "pos_drop" not in chain(*(b.modules for b in blocks))  # without tensors, between blocks: nobody's


def test_fashion_cnn() -> None:
    made = create("fashion_cnn")
    blocks = find_blocks(made.module, made.head)
    assert [block.name for block in blocks] == ["conv1", "conv2", "conv3", "fc1", "head"]
    assert blocks[3] == Block(
        "fc1",
        ("fc1.weight", "fc1.bias", "bn_fc.weight", "bn_fc.bias"),
        ("bn_fc.running_mean", "bn_fc.running_var", "bn_fc.num_batches_tracked"),
        ("fc1", "bn_fc"),
        ("bn_fc",),
    )
    assert blocks[4].parameters == ("fc2.weight", "fc2.bias") and blocks[4].modules == ("fc2",)
    _check(made.module, blocks, made.head)


class Plain(nn.Module):
    """A parameter and a buffer of its own, a norm without bias before it, a shared layer, a tied weight."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.zeros(2))
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.one = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
        self.two = nn.Sequential(self.one[0], nn.Linear(4, 4))
        self.three = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.three[0].weight = self.one[2].weight  # type: ignore[assignment]
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 2))


def test_plain_modules_with_shared_parts() -> None:
    module = Plain()
    blocks = {block.name: block for block in find_blocks(module, "head.1")}
    assert list(blocks) == ["stem", "one", "two", "three", "head"]
    assert blocks["stem"].parameters == ("token", "stem.weight")
    assert "table" in blocks["stem"].buffers and "norm.running_mean" in blocks["stem"].buffers
    assert blocks["stem"].norms == ("norm",)
    assert blocks["one"].modules == ("one",)
    assert blocks["two"].parameters == ("two.1.weight", "two.1.bias") and blocks["two"].modules == ("two.1",)
    assert blocks["three"].parameters == ("three.0.bias", "three.1.weight", "three.1.bias")
    assert blocks["three"].modules == ("three.1",)  # three.0 holds a weight of block one
    assert blocks["head"].modules == ("head",)  # the whole subtree, its dropout too
