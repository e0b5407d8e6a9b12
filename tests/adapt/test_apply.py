"""Carrying out a plan: gradients, groups, modes, and the proof that frozen parts stay as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from warmstart.adapt.apply import apply_stage, frozen_hash, live_norms, set_modes
from warmstart.adapt.plan import Plan, make_plan
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig
from warmstart.models.build import BuiltModel, build

CLASSES = ("ant", "bee", "cat")


def make(name: str, **adapt: object) -> tuple[BuiltModel, Plan]:
    built = build(ModelConfig(name=name, weights="none"), {"image_size": (32, 32)}, CLASSES, 0)
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    return built, make_plan(built.blocks, sizes, AdaptConfig(**adapt), OptimConfig(weight_decay=0.1))


def train_steps(built: BuiltModel, num: int = 2) -> None:
    trained = [p for p in built.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num):
        images = torch.randn(4, built.preprocessing.num_channels, 32, 32, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(built.module(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def test_a_stage_switches_gradients_on_for_its_blocks_only() -> None:
    built, plan = make("builtin:fashion_cnn", unfreeze="0:head,1:fc1,2:all")
    for stage, count in ((0, 2), (1, 6), (2, 18), (0, 2)):
        groups = apply_stage(built.module, plan, stage)
        on = {name for name, p in built.module.named_parameters() if p.requires_grad}
        assert len(on) == count
        assert on == {name for group in groups for name in group.names}
        assert all(
            p is dict(built.module.named_parameters())[name]
            for group in groups
            for name, p in zip(group.names, group.parameters, strict=True)
        )


def test_biases_and_norms_are_in_groups_without_decay() -> None:
    built, plan = make("builtin:fashion_cnn", lrs="head=0.5", freeze="conv*")
    groups = apply_stage(built.module, plan, 0)
    assert [(g.block, g.lr, g.weight_decay, g.names) for g in groups] == [
        ("fc1", 1e-3, 0.1, ("fc1.weight",)),
        ("fc1", 1e-3, 0.0, ("fc1.bias", "bn_fc.weight", "bn_fc.bias")),
        ("head", 0.5, 0.1, ("fc2.weight",)),
        ("head", 0.5, 0.0, ("fc2.bias",)),
    ]


def test_gradients_of_an_earlier_stage_are_dropped() -> None:
    built, plan = make("builtin:fashion_cnn", freeze="conv*")
    for parameter in built.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_stage(built.module, plan, 0)
    left = {name for name, p in built.module.named_parameters() if p.grad is not None}
    assert left == {"fc1.weight", "fc1.bias", "bn_fc.weight", "bn_fc.bias", "fc2.weight", "fc2.bias"}


def test_modes_hold_frozen_norms_after_every_train() -> None:
    built, plan = make("builtin:fashion_cnn", unfreeze="0:head,1:fc1,2:all")
    module = built.module

    def training() -> set[str]:
        return {
            name for name in ("bn1", "bn2", "bn3", "bn_fc", "dropout") if module.get_submodule(name).training
        }

    for stage, live in (
        (0, {"dropout"}),
        (1, {"dropout", "bn_fc"}),
        (2, {"bn1", "bn2", "bn3", "bn_fc", "dropout"}),
    ):
        module.train()
        set_modes(module, plan, built.blocks, stage)
        assert training() == live and module.training
        assert set(live_norms(plan, built.blocks, stage)) == live - {"dropout"}


def test_held_norms_keep_their_block_in_training_mode() -> None:
    built, plan = make("timm:mobilenetv3_small_100", freeze_bn=True)
    apply_stage(built.module, plan, 0)
    set_modes(built.module, plan, built.blocks, 0)
    norms = [m for m in built.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert all(m.training for m in built.module.modules() if isinstance(m, nn.Conv2d))
    assert live_norms(plan, built.blocks, 0) == ()


def test_statistics_of_a_frozen_resnet_stand_still_where_plain_training_moves_them() -> None:
    built, plan = make("timm:resnet10t", freeze="backbone")
    apply_stage(built.module, plan, 0)
    before = frozen_hash(built.module, plan, built.blocks, 0)
    set_modes(built.module, plan, built.blocks, 0)
    head = built.module.get_submodule(built.head)
    weight = head.weight.clone()
    train_steps(built)
    assert frozen_hash(built.module, plan, built.blocks, 0) == before
    assert not torch.equal(head.weight, weight)
    built.module.train()  # what torch does when nobody holds the norms
    train_steps(built, 1)
    assert frozen_hash(built.module, plan, built.blocks, 0) != before


@pytest.mark.parametrize("adapt", [{"freeze": "conv*"}, {"freeze_bn": True}, {"unfreeze": "0:head,1:all"}])
def test_the_hash_sees_every_frozen_tensor_and_no_trained_one(adapt: dict[str, object]) -> None:
    built, plan = make("builtin:fashion_cnn", **adapt)
    trained = {name for group in apply_stage(built.module, plan, 0) for name in group.names}
    live = tuple(f"{norm}." for norm in live_norms(plan, built.blocks, 0))
    before = frozen_hash(built.module, plan, built.blocks, 0)
    moving = set()
    for name, tensor in built.module.state_dict().items():
        kept = tensor.clone()
        tensor.view(-1)[-1] += 1
        if frozen_hash(built.module, plan, built.blocks, 0) == before:
            moving.add(name)
        tensor.copy_(kept)
    assert frozen_hash(built.module, plan, built.blocks, 0) == before
    expected = {name for name, _ in built.module.named_buffers() if live and name.startswith(live)}
    assert moving == trained | expected


def test_the_hash_does_not_depend_on_the_memory_layout() -> None:
    built, plan = make("timm:resnet10t", freeze="backbone")
    before = frozen_hash(built.module, plan, built.blocks, 0)
    built.module.to(memory_format=torch.channels_last)
    assert frozen_hash(built.module, plan, built.blocks, 0) == before
