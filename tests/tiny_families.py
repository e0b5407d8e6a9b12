"""Tiny models of many families, as `restore` would hand them over."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tiny_transformers import TOKENS, WINDOWS, tiny
from warmstart.models.blocks import find_blocks
from warmstart.models.build import BuiltModel
from warmstart.models.heads import HeadChange
from warmstart.models.hf_zoo import _only_logits
from warmstart.records import Preprocessing

CLASSES = ("ant", "bee", "cat")
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


def built_of(module: nn.Module, head: str, segments: bool = False) -> BuiltModel:
    return BuiltModel(
        module=module.eval(),
        name=type(module).__name__,
        blocks=find_blocks(module, head),
        head=head,
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3),
        classes=CLASSES,
        channels_last=False,
        licence=None,
        head_change=HeadChange("new", (), CLASSES, ""),
        source={},
        segments=segments,
    )


def timm_vit(**settings: object) -> tuple[nn.Module, str]:
    return VisionTransformer(**{**_VIT, **settings}), "head"


def torchvision_vit() -> tuple[nn.Module, str]:
    module = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=3
    )
    nn.init.normal_(module.heads.head.weight)  # 0 when it is made: nothing would lead to an answer
    return module, "heads.head"


def of_transformers(family: str, **options: object) -> tuple[nn.Module, str]:
    module = tiny("ForImageClassification", family, num_labels=3, **options)()
    module.register_forward_hook(_only_logits)
    return module, "classifier"


def torchvision_swin() -> tuple[nn.Module, str]:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [1, 2], [4, 4], num_classes=3), "head"


def timm_swin() -> tuple[nn.Module, str]:
    module = SwinTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=4,
        num_classes=3,
    )
    return module, "head.fc"


FAMILIES: dict[str, Callable[[], tuple[nn.Module, str]]] = {
    "resnet": lambda: (timm.create_model("resnet10t", num_classes=3, zero_init_last=False), "fc"),
    "mobilenetv3": lambda: (timm.create_model("mobilenetv3_small_050", num_classes=3), "classifier"),
    "convnext": lambda: (ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=3), "head.fc"),
    "vit": timm_vit,
    "vit, mean": lambda: timm_vit(global_pool="avg"),
    "vit, registers": lambda: timm_vit(reg_tokens=4),
    "vit, pooling by attention": lambda: timm_vit(global_pool="map", class_token=False),
    "swin": timm_swin,
    "torchvision vit": torchvision_vit,
    "torchvision swin": torchvision_swin,
    "transformers vit": lambda: of_transformers("ViT", **TOKENS),
    "transformers swin": lambda: of_transformers("Swin", **WINDOWS),
}


def made(family: str) -> BuiltModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return built_of(*FAMILIES[family]())


def images(num: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


def side_of(family: str) -> int:
    return 32 if "vit" in family or "swin" in family else 64
