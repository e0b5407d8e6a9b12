"""Multiply-adds by their definition, and of a model as a run records them."""

from __future__ import annotations

import torch
from torch import nn

from warmstart.config.schema import ModelConfig
from warmstart.models.build import build
from warmstart.models.macs import count_macs, macs_per_image


def test_macs_are_those_of_the_definition() -> None:
    """A convolution: outputs x kernel x input channels per group; a linear layer: its weights; attention: products."""
    grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
    assert count_macs(grouped, torch.zeros(1, 8, 10, 10)) == 12 * 100 * 9 * 2
    assert count_macs(nn.Linear(5, 7), torch.zeros(2, 3, 5)) == 2 * 3 * 5 * 7
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, width = 5, 8
    products = 2 * tokens * tokens * width  # scores, and values by them
    layers = tokens * (4 * width * width + 2 * width * 16)
    assert count_macs(attention, torch.zeros(1, tokens, width)) == products + layers


def test_an_image_through_a_built_model_leaves_its_modes_alone() -> None:
    """builtin:fashion_cnn: the products of its convolutions and linear layers, counted by their shapes."""
    nothing = dict.fromkeys(("mean", "std", "image_size", "crop_pct"))
    built = build(ModelConfig(name="builtin:fashion_cnn", weights="none"), nothing, ("ant", "bee"), seed=0)
    built.module.train()
    frozen = next(m for m in built.module.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    seen: dict[str, int] = {}

    def products(name: str):
        def look(layer, arguments, output):
            kernel = layer.weight[0].numel()
            seen[name] = kernel * output.numel() // len(output)

        return look

    hooks = [
        layer.register_forward_hook(products(name))
        for name, layer in built.module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    found = macs_per_image(built)
    for hook in hooks:
        hook.remove()
    assert found == sum(seen.values()) > 0
    assert built.module.training and not frozen.training
