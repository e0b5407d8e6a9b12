"""Document 001's models and files as they are published, for the tests that compare with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.config.ocec import OcecShape, shape_of
from warmstart.models.builtin.ocec import Ocec

EYES = ("closed", "open")
# Reference 2B: parameters at 32 channels and 4 blocks.
COUNTS = {
    "ocec": 11_457,
    "ocec-avgmax_mlp": 19_841,
    "ocec-inverted_se": 118_321,
    "ocec-inverted_se-avg": 109_937,
    "ocec-convnext": 170_145,
    "ocec-convnext-mlp_mixer": 137_189,
    "ocec-convnext-avg": 103_201,
    "ocec-convnext-avgmax_mlp": 111_585,
}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names(name: str) -> list[str]:
    """The keys of the document's files, as its program builds its layers (four blocks)."""
    shape, names = shape_of(name), []
    both = ("weight", "bias")

    def add(path: str, kinds: tuple[str, ...]) -> None:
        names.extend(f"{path}.{kind}" for kind in kinds)

    if shape.arch_variant == "baseline":
        add("stem.0", ("weight",))
        add("stem.1", BN)
        for i in range(4):
            for part in ("depthwise", "pointwise"):
                add(f"features.{i}.{part}.0", ("weight",))
                add(f"features.{i}.{part}.1", BN)
    elif shape.arch_variant == "inverted_se":
        for at in (0, 3):
            add(f"stem.{at}", ("weight",))
            add(f"stem.{at + 1}", BN)
        for i in range(4):
            for at in (0, 3):
                add(f"features.{i}.block.{at}", ("weight",))
                add(f"features.{i}.block.{at + 1}", BN)
            add(f"features.{i}.block.6.fc.0", both)
            add(f"features.{i}.block.6.fc.2", both)
            add(f"features.{i}.block.7", ("weight",))
            add(f"features.{i}.block.8", BN)
    else:
        add("stem.0", both)
        add("stem.1.norm", both)
        for i in range(4):
            if i == 2:
                add("features.2.0.op.0.norm", both)
                add("features.2.0.op.1", both)
            block = f"features.{i}.{int(i == 2)}"
            names.append(f"{block}.gamma")
            for layer in ("dwconv", "norm.norm", "pwconv1", "pwconv2"):
                add(f"{block}.{layer}", both)
    if shape.head in ("avg", "avgmax_mlp"):
        add("head.0", BN)
        for at in (2,) if shape.head == "avg" else (2, 5):
            add(f"head.{at}", both)
        return names
    for i in range(2):
        if shape.head == "transformer":
            layer = f"head.mixer.layers.{i}"
            names += [f"{layer}.self_attn.in_proj_weight", f"{layer}.self_attn.in_proj_bias"]
            for part in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"):
                add(f"{layer}.{part}", both)
        else:
            for part in (
                "norm_tokens",
                "token_fc1",
                "token_fc2",
                "norm_channels",
                "channel_fc1",
                "channel_fc2",
            ):
                add(f"head.mixer.{i}.{part}", both)
    add("head.final_norm", both)
    add("head.fc", both)
    return names


class Published:
    """The published arithmetic on the tensors of a file, one function per layer, without any module."""

    def __init__(self, state: dict[str, Tensor], shape: OcecShape) -> None:
        self.state, self.shape = {key: t.double() for key, t in state.items()}, shape

    def layer(self, path: str) -> tuple[Tensor, Tensor | None]:
        return self.state[f"{path}.weight"], self.state.get(f"{path}.bias")

    def conv(self, path: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, *self.layer(path), **options)

    def bn(self, path: str, x: Tensor) -> Tensor:
        mean, var = (self.state[f"{path}.running_{kind}"] for kind in ("mean", "var"))
        weight, bias = self.layer(path)
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(
            shape
        )  # type: ignore[union-attr]

    def norm(self, path: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.layer(path), eps=eps)

    def norm2d(self, path: str, x: Tensor) -> Tensor:
        return self.norm(f"{path}.norm", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.layer(path))

    def features(self, x: Tensor) -> Tensor:
        variant = self.shape.arch_variant
        if variant == "convnext":
            x = self.norm2d("stem.1", self.conv("stem.0", x, stride=4))
        elif variant == "baseline":
            x = self.bn("stem.1", self.conv("stem.0", x, stride=2, padding=1)).relu()
        else:
            x = F.silu(self.bn("stem.1", self.conv("stem.0", x, padding=1)))
            x = F.silu(self.bn("stem.4", self.conv("stem.3", x, stride=2, padding=1)))
        for i in range(self.shape.num_blocks):
            x = getattr(self, variant)(f"features.{i}", x, 2 if i and i % 2 == 0 else 1)
        return x

    def baseline(self, path: str, x: Tensor, stride: int) -> Tensor:
        y = self.conv(f"{path}.depthwise.0", x, stride=stride, padding=1, groups=x.shape[1])
        y = self.bn(
            f"{path}.pointwise.1", self.conv(f"{path}.pointwise.0", self.bn(f"{path}.depthwise.1", y).relu())
        )
        return (y + x if y.shape == x.shape else y).relu()

    def inverted_se(self, path: str, x: Tensor, stride: int) -> Tensor:
        y = F.silu(self.bn(f"{path}.block.1", self.conv(f"{path}.block.0", x)))
        y = self.conv(f"{path}.block.3", y, stride=stride, padding=1, groups=y.shape[1])
        y = F.silu(self.bn(f"{path}.block.4", y))
        gate = self.conv(f"{path}.block.6.fc.0", F.adaptive_avg_pool2d(y, 1)).relu()
        y = y * self.conv(f"{path}.block.6.fc.2", gate).sigmoid()
        y = self.bn(f"{path}.block.8", self.conv(f"{path}.block.7", y))
        return F.silu(y + x if y.shape == x.shape else y)

    def convnext(self, path: str, x: Tensor, stride: int) -> Tensor:
        block = f"{path}.{stride - 1}"
        if stride == 2:
            x = self.conv(f"{path}.0.op.1", self.norm2d(f"{path}.0.op.0", x), stride=2)
        y = self.norm2d(f"{block}.norm", self.conv(f"{block}.dwconv", x, padding=3, groups=x.shape[1]))
        y = self.linear(f"{block}.pwconv2", F.gelu(self.linear(f"{block}.pwconv1", y.permute(0, 2, 3, 1))))
        return x + (self.state[f"{block}.gamma"] * y).permute(0, 3, 1, 2)

    def transformer(self, path: str, x: Tensor) -> Tensor:
        y = self.norm(f"{path}.norm1", x)
        weight, bias = (self.state[f"{path}.self_attn.in_proj_{kind}"] for kind in ("weight", "bias"))
        parts = F.linear(y, weight, bias).unflatten(2, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].mT / math.sqrt(parts.shape[-1])
        mixed = (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)
        x = x + self.linear(f"{path}.self_attn.out_proj", mixed)
        y = F.gelu(self.linear(f"{path}.linear1", self.norm(f"{path}.norm2", x)))
        return x + self.linear(f"{path}.linear2", y)

    def mlp_mixer(self, path: str, x: Tensor) -> Tensor:
        y = F.gelu(self.linear(f"{path}.token_fc1", self.norm(f"{path}.norm_tokens", x).mT))
        x = x + self.linear(f"{path}.token_fc2", y).mT
        y = F.gelu(self.linear(f"{path}.channel_fc1", self.norm(f"{path}.norm_channels", x)))
        return x + self.linear(f"{path}.channel_fc2", y)

    def logits(self, images: Tensor) -> Tensor:
        """(N,), the sigmoid of which is the probability of an open eye."""
        x = self.features(images.double())
        means, maxima = x.mean((2, 3)), x.amax((2, 3))
        if self.shape.head == "avg":
            return self.linear("head.2", self.bn("head.0", means))[:, 0]
        if self.shape.head == "avgmax_mlp":
            y = self.bn("head.0", torch.cat([means, maxima], 1))
            return self.linear("head.5", self.linear("head.2", y).relu())[:, 0]
        down, across = self.shape.token_mixer_grid
        tokens = F.avg_pool2d(x, (x.shape[2] // down, x.shape[3] // across)).flatten(2).mT
        for i in range(2):
            is_transformer = self.shape.head == "transformer"
            path = f"head.mixer.layers.{i}" if is_transformer else f"head.mixer.{i}"
            tokens = getattr(self, self.shape.head)(path, tokens)
        return self.linear("head.fc", self.norm("head.final_norm", tokens.mean(1)))[:, 0]


def lively(name: str = "ocec", **options: Any) -> Ocec:
    """No norm at its identity and no statistics at their start, so that every tensor matters."""
    torch.manual_seed(0)
    module = Ocec(shape_of(name), **options).eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.3, 1.2)
    return module


def checkpoint(
    folder: Path, name: str = "ocec", prefix: str = "", file: str = "ocec_epoch_0001.pt", **changed: Any
) -> Path:
    """As the document's program writes it after its first epoch."""
    shape, module = shape_of(name), lively(name)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=2)
    nn.functional.cross_entropy(
        module.train()(torch.rand(4, 3, 48, 48)), torch.tensor([0, 1, 1, 0])
    ).backward()
    optimizer.step()
    scheduler.step(0.61)
    metrics = {"loss": 0.61, "accuracy": 0.7, "precision": 0.7, "recall": 0.8, "f1": 0.7467}
    model_config = {
        "base_channels": shape.base_channels,
        "num_blocks": shape.num_blocks,
        "dropout": 0.3,
        "arch_variant": shape.arch_variant,
        "expansion": 4,
        "se_reduction": 8,
        "head_variant": shape.head_variant or "auto",
        "token_mixer_grid": shape.token_mixer_grid,
        "token_mixer_layers": 2,
    }
    content = {
        "model_config": model_config,
        "train_config": {
            "data_root": "data",
            "epochs": 30,
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "seed": 42,
            "batch_size": 32,
        },
        "normalization": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "image_size": [48, 48]},
        "label_map": {0: "closed", 1: "open"},
        "amp_enabled": False,
        "tensorboard_logdir": "runs/ocec",
        "epoch": 1,
        "model_state": {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()},
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": scheduler.state_dict(),
        "scaler_state": None,
        "train_metrics": dict(metrics),
        "val_metrics": metrics,
    }
    torch.save(content | changed, folder / file)
    return folder / file
