from __future__ import annotations

import pytest
import torch
from torch import nn

from warmstart.methods.compress.channels import Group
from warmstart.methods.compress.choosing import (
    MOST_OF_A_GROUP,
    Costs,
    choose_each,
    choose_global,
    inputs_left,
    lowest,
)
from warmstart.methods.compress.pruning import find_groups, pruned
from warmstart.models.macs import count_macs
from warmstart.models.zoo import create

NAMES = ("timm:test_resnet", "timm:test_vit")


def found(name: str) -> tuple[nn.Module, torch.Tensor, tuple[Group, ...], str]:
    torch.manual_seed(0)
    created = create(name, 10, pretrained=False)
    example = torch.randn(1, 3, *created.preprocessing.image_size)
    module = created.module.eval()
    return module, example, find_groups(module, example, created.head, name), created.head


@pytest.mark.parametrize("name", NAMES)
def test_macs_that_are_left_are_those_of_the_pruned_model(name: str) -> None:
    module, example, groups, _ = found(name)
    costs = Costs(module, groups, example)
    assert costs.total == pytest.approx(count_macs(module, example))
    chosen = [frozenset(range(0, group.num_units, 3)) for group in groups]
    smaller = pruned(module, groups, chosen, example, name)
    assert costs.left(chosen) == pytest.approx(count_macs(smaller, example), rel=1e-6)


def test_the_least_important_units_of_all_groups_go_first() -> None:
    module, example, groups, _ = found("timm:test_resnet")
    costs = Costs(module, groups, example)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(group.num_units, generator=generator) for group in groups]
    chosen = choose_global(groups, scores, costs.left, 0.7 * costs.total)
    assert 0.69 * costs.total < costs.left(chosen) <= 0.7 * costs.total
    gone = torch.cat([score[list(units)] for score, units in zip(scores, chosen, strict=True) if units])
    kept = [
        score[unit].item()
        for score, units, usable in zip(scores, chosen, lowest(groups, scores), strict=True)
        for unit in usable
        if unit not in units
    ]
    assert gone.max() <= min(kept)
    everything = choose_global(groups, scores, costs.left, 0.0)
    for group, units in zip(groups, everything, strict=True):
        assert 0 < group.num_units - len(units) >= (1 - MOST_OF_A_GROUP) * group.num_units - 1e-9
    silent = [None, *scores[1:]]  # a kind of importance that says nothing of the first
    assert choose_global(groups, silent, costs.left, 0.0)[0] == frozenset()


def test_each_group_loses_the_share_that_its_level_gives() -> None:
    module, example, groups, _ = found("timm:test_resnet")
    costs = Costs(module, groups, example)
    scores = [torch.arange(group.num_units).double() for group in groups]
    last = groups[-1].name
    chosen = choose_each(
        groups,
        scores,
        costs.left,
        0.8 * costs.total,
        lambda group, level: 0.0 if group.name == last else level,
    )
    assert chosen[-1] == frozenset() and costs.left(chosen) <= 0.8 * costs.total
    shares = {len(units) / group.num_units for group, units in zip(groups[:-1], chosen, strict=False)}
    assert max(shares) - min(shares) < 0.05
    for units in chosen:
        assert units == frozenset(range(len(units)))  # the lowest scores


def test_inputs_of_the_classifier_are_counted() -> None:
    _, _, groups, head = found("timm:test_resnet")
    feeding = [group for group in groups if group.feeds(head)]
    none = [frozenset[int]()] * len(feeding)
    whole = inputs_left(feeding, head, none)
    assert whole == sum(group.num_units for group in feeding) > 0
    assert inputs_left(feeding, head, [frozenset({0, 1}), *none[1:]]) == whole - 2
