from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from warmstart.methods.compress.choosing import MOST_OF_A_GROUP
from warmstart.methods.compress.importance import importance
from warmstart.methods.compress.prune import Target, groups_of
from warmstart.methods.compress.sensitivity import (
    SHARES,
    Curve,
    Sensitivity,
    block_finder,
    measure_sensitivity,
)
from warmstart.models.blocks import find_blocks
from warmstart.models.zoo import create
from warmstart.records import Block


def made() -> tuple[Target, tuple[Block, ...]]:
    torch.manual_seed(0)
    created = create("timm:test_resnet", 10, pretrained=False)
    example = torch.randn(1, 3, *created.preprocessing.image_size)
    module = created.module.eval()
    return Target(module, created.head, example, "test_resnet"), find_blocks(module, created.head)


def test_each_block_is_pruned_alone() -> None:
    target, blocks = made()
    whole = sum(p.numel() for p in target.module.parameters())
    seen: list[float] = []

    def measure(module: nn.Module) -> tuple[str, float, int]:
        seen.append(sum(p.numel() for p in module.parameters()) / whole)
        return "accuracy", seen[-1], 7

    found = measure_sensitivity(
        target, lambda groups: importance(target.module, groups, "l1", 0), blocks, measure
    )
    names = [block.name for block in blocks]
    assert [curve.block for curve in found.curves] == [name for name in names if name != "head"]
    assert found.whole == seen[0] == 1 and found.num_images == 7
    for curve in found.curves:
        assert 1 > curve.values[0] > curve.values[1] > curve.values[2]
        assert 0 < curve.saved[0] < curve.saved[1] < curve.saved[2] < 1
    assert Sensitivity.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert "layer1" in found.text()


def test_a_block_that_stands_more_loses_more() -> None:
    target, blocks = made()
    groups = groups_of(target, "block")
    block_of = block_finder(blocks)
    names = list(dict.fromkeys(map(block_of, groups)))
    curves = (
        Curve(names[0], (0.8, 0.6, 0.2), (0.1, 0.2, 0.3)),
        Curve(
            names[1], (0.9, 0.95, 0.85), (0.1, 0.2, 0.3)
        ),  # noise: better with half than with three quarters
    )
    share = Sensitivity("accuracy", 1.0, 100, curves).share_of(blocks)
    weak, tough, unknown = (
        next(group for group in groups if block_of(group) == names[place]) for place in (0, 1, 2)
    )
    assert share(weak, 0.0) == share(tough, 0.0) == share(unknown, 0.5) == 0
    assert share(weak, 0.2) == pytest.approx(SHARES[0], abs=1e-6)
    assert share(weak, 0.3) == pytest.approx((SHARES[0] + SHARES[1]) / 2, abs=1e-6)
    assert share(tough, 0.12) > share(weak, 0.12)
    assert share(tough, 1.0) == pytest.approx(MOST_OF_A_GROUP, abs=1e-3)
    levels = [share(tough, level / 50) for level in range(51)]
    assert levels == sorted(levels)
