"""Rollout against its definition, from attention that is read in another way; and what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import nn

from tiny_families import images, made
from warmstart.analysis.explain.attention import AttentionWeights, rollout
from warmstart.analysis.explain.grad_cam import score_of
from warmstart.analysis.explain.layers import find_layer
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel


def by_definition(attention: list[np.ndarray]) -> np.ndarray:
    """(N, T, T) of (N, heads, T, T) by layer: Abnar & Zuidema 2020, section 4."""
    whole = np.stack([np.eye(attention[0].shape[-1])] * len(attention[0]))
    for weights in attention:
        residual = 0.5 * weights.mean(axis=1) + 0.5 * np.eye(weights.shape[-1])
        whole = residual @ whole
    return whole


def read_by_hooks(module: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """What goes into the dropout of timm's attention, computed without the fused kernel."""
    found: list[np.ndarray] = []
    for part in module.modules():
        if hasattr(part, "attn_drop"):
            part.fused_attn = False
            part.attn_drop.register_forward_pre_hook(lambda _, args: found.append(args[0].numpy()))
        elif isinstance(part, AttentionPoolLatent):
            asked: list[torch.Tensor] = []
            part.q_norm.register_forward_hook(lambda _, __, q, asked=asked: asked.append(q))
            part.k_norm.register_forward_hook(
                lambda _, __, k, part=part, asked=asked: found.append(
                    (asked[0] @ k.transpose(2, 3) * part.scale).softmax(dim=-1).numpy()
                )
            )
    with torch.no_grad():
        module(x)
    return found


def of(built: BuiltModel, x: torch.Tensor) -> np.ndarray:
    layer = find_layer(built, x.float(), score_of(built, 0))
    built.module.double()
    return rollout(built.module, layer, x.double(), built.name).numpy()


@pytest.mark.parametrize(
    ("family", "prefix", "rows"),
    [("vit", 1, [0]), ("vit, registers", 5, [0]), ("vit, mean", 1, list(range(1, 17)))],
)
def test_it_is_the_product_of_the_layers(family: str, prefix: int, rows: list[int]) -> None:
    built, x = made(family), images(3, 32)
    found = of(built, x)
    whole = by_definition(read_by_hooks(built.module, x.double()))
    wanted = whole[:, rows].mean(axis=1)[:, prefix:].reshape(3, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_attention_that_pools_comes_on_top() -> None:
    built, x = made("vit, pooling by attention"), images(2, 32)
    found = of(built, x)
    *layers, pool = read_by_hooks(built.module, x.double())
    assert pool.shape[2:] == (1, 16)
    wanted = (pool.mean(axis=1) @ by_definition(layers)).reshape(2, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-10)


def test_of_torch_s_own_attention() -> None:
    built, x = made("torchvision vit"), images(2, 32)
    found = of(built, x)
    weights: list[np.ndarray] = []

    def read(part: nn.MultiheadAttention, args: Any, _: Any) -> None:
        with torch.no_grad():
            weights.append(part._unhooked(*args, need_weights=True, average_attn_weights=False)[1].numpy())

    for part in built.module.modules():
        if isinstance(part, nn.MultiheadAttention):
            part._unhooked = part.forward
            part.register_forward_hook(read)
    with torch.no_grad():
        built.module(x.double())
    np.testing.assert_allclose(found, by_definition(weights)[:, 0, 1:].reshape(2, 4, 4), rtol=1e-10)


def test_of_transformers_attention() -> None:
    built, x = made("transformers vit"), images(2, 32)
    found = of(built, x)
    built.module.set_attn_implementation("eager")
    with torch.no_grad():
        weights = built.module.vit(x.double(), output_attentions=True).attentions
    wanted = by_definition([w.numpy() for w in weights])[:, 0, 1:].reshape(2, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # its softmax is in float32


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("resnet", "has no attention"),
        ("swin", "not between all places of the image"),
        ("transformers swin", "windows"),
    ],
)
def test_a_model_without_it_is_refused(family: str, message: str) -> None:
    built, x = made(family), images(1, 32 if "swin" in family else 64)
    layer = find_layer(built, x, score_of(built, 0))
    with pytest.raises(UserError, match=f"rollout: .*{message}(?s:.*)--method grad-cam"):
        rollout(built.module, layer, x, built.name)


@pytest.mark.parametrize("kind", ["bool", "float", "none"])
def test_masks_and_scales_are_those_of_torch(kind: str) -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    allowed = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    mask = {
        "bool": allowed | torch.eye(5, dtype=torch.bool),
        "float": torch.randn(5, 5).double(),
        "none": None,
    }[kind]
    with AttentionWeights() as attention:
        wanted = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(attention.found[0] @ v, wanted)
