"""The plan: every parameter in one row, patterns that name something, nothing silently without effect."""

from __future__ import annotations

import pytest

from warmstart.adapt.plan import Plan, decays, make_plan, match_blocks
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def fashion() -> BuiltModel:
    return build(ModelConfig(name="builtin:fashion_cnn", weights="none"), {}, CLASSES, 0)


@pytest.fixture(scope="module")
def vit() -> BuiltModel:
    settings = ModelConfig(name="timm:vit_tiny_patch16_224", weights="none")
    return build(settings, {"image_size": (32, 32)}, CLASSES, 0)


def plan_for(built: BuiltModel, adapt: dict[str, object], **optim: object) -> Plan:
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    return make_plan(built.blocks, sizes, AdaptConfig(**adapt), OptimConfig(**optim))


def modes(plan: Plan) -> dict[str, str]:
    return {row.name: row.mode for row in plan.rows}


def refusal(built: BuiltModel, adapt: dict[str, object]) -> str:
    with pytest.raises(UserError) as error:
        plan_for(built, adapt)
    return str(error.value)


@pytest.mark.parametrize(
    "adapt",
    [
        {},
        {"freeze": "conv*"},
        {"freeze_bn": True},
        {"unfreeze": "0:head,1:fc1,2:all"},
        {"freeze": "backbone", "lrs": "head=1"},
    ],
)
def test_every_parameter_is_in_exactly_one_row(fashion: BuiltModel, adapt: dict[str, object]) -> None:
    plan = plan_for(fashion, adapt)
    named = [name for row in plan.rows for name in (*row.trainable, *row.held)]
    assert sorted(named) == sorted(name for name, _ in fashion.module.named_parameters())
    assert sum(row.num_parameters for row in plan.rows) == sum(p.numel() for p in fashion.module.parameters())


def test_freezing_the_convolutions_freezes_their_norms_and_lets_the_rest_train(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"freeze": "conv*"})
    assert modes(plan) == {
        "conv1": "frozen",
        "conv2": "frozen",
        "conv3": "frozen",
        "fc1": "full",
        "head": "full",
    }
    assert {row.name: row.norms for row in plan.rows if row.name != "head"} == {
        "conv1": "held",
        "conv2": "held",
        "conv3": "held",
        "fc1": "train",
    }
    assert set(plan.row("conv2").held) == {"conv2.weight", "conv2.bias", "bn2.weight", "bn2.bias"}
    assert set(plan.row("fc1").trainable) == {"fc1.weight", "fc1.bias", "bn_fc.weight", "bn_fc.bias"}
    assert plan.row("conv1").lr == 0.0


def test_freezing_by_name_glob_and_backbone(fashion: BuiltModel) -> None:
    assert [n for n, m in modes(plan_for(fashion, {"freeze": "conv2"})).items() if m == "frozen"] == ["conv2"]
    by_word = modes(plan_for(fashion, {"freeze": "backbone"}))
    assert [n for n, m in by_word.items() if m == "full"] == ["head"]
    assert modes(plan_for(fashion, {"freeze": "conv?,fc*"})) == by_word


def test_freeze_bn_holds_statistics_and_affine_parameters_everywhere(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"freeze_bn": True})
    held = {name for row in plan.rows for name in row.held}
    assert held == {
        f"{norm}.{part}" for norm in ("bn1", "bn2", "bn3", "bn_fc") for part in ("weight", "bias")
    }
    assert [row.norms for row in plan.rows] == ["held", "held", "held", "held", "-"]
    assert plan.notes == ()


def test_the_first_matching_rate_wins(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"lrs": "conv1=1e-6,conv*=1e-5,backbone=1e-4"}, lr=0.5)
    assert [row.lr for row in plan.rows] == [1e-6, 1e-5, 1e-5, 1e-4, 0.5]


def test_patterns_that_name_nothing_are_refused_with_the_closest_name(fashion: BuiltModel) -> None:
    assert refusal(fashion, {"lrs": "conf1=1e-3"}) == (
        "--lrs: 'conf1' names no block of this model\n"
        "Expected: one of conv1, conv2, conv3, fc1, head, a glob such as conv*, backbone, or all\n"
        "Fix: Did you mean 'conv1'?"
    )
    assert "--freeze: 'backbon' names no block" in refusal(fashion, {"freeze": "backbon"})
    assert "Did you mean 'backbone'?" in refusal(fashion, {"freeze": "backbon"})
    assert "--unfreeze 1: 'haed' names no block" in refusal(fashion, {"unfreeze": "0:fc1,1:haed"})


def test_unfreezing_gives_stages(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"unfreeze": "3:all,0:head,1:fc1"})
    assert [row.from_epoch for row in plan.rows] == [3, 3, 3, 1, 0]
    assert plan.stage_epochs == (0, 1, 3)
    assert [plan.stage(epoch) for epoch in range(5)] == [0, 1, 1, 2, 2]
    assert not plan.row("fc1").trains_at(0) and plan.row("fc1").trains_at(1)
    assert plan_for(fashion, {"unfreeze": "0:head,2:backbone"}).row("conv1").from_epoch == 2
    assert plan.to_json(7)["rows"][0]["from_step"] == 21


def test_unfreezing_that_cannot_be_meant_is_refused(fashion: BuiltModel) -> None:
    assert refusal(fashion, {"unfreeze": "1:head,2:all"}) == (
        "--unfreeze names no block for epoch 0, so nothing would train before epoch 1\n"
        "Expected: an entry for epoch 0, such as 0:head"
    )
    assert refusal(fashion, {"unfreeze": "0:all,2:conv1"}).startswith(
        "--unfreeze 2:conv1 unfreezes nothing: conv1 train already by then"
    )


def test_freezing_everything_is_refused(fashion: BuiltModel) -> None:
    assert refusal(fashion, {"freeze": "all"}).startswith("every block is frozen: nothing would be trained")


def test_settings_without_effect_are_named(fashion: BuiltModel, vit: BuiltModel) -> None:
    frozen_rates = plan_for(fashion, {"freeze": "conv*", "lrs": "conv1=1e-3,backbone=1e-4"})
    assert frozen_rates.notes == ("--lrs conv1 has no effect: conv1 frozen",)
    assert plan_for(fashion, {"unfreeze": "0:head,1:fc1"}).notes == (
        "--unfreeze never names conv1, conv2, conv3: frozen for the whole run",
    )
    assert plan_for(fashion, {"freeze": "backbone", "freeze_bn": True}).notes == (
        "--freeze-bn has no effect: conv1, conv2, conv3, fc1 frozen with their norms",
    )
    assert plan_for(vit, {"freeze_bn": True}).notes == (
        "--freeze-bn has no effect: this model keeps no running statistics",
    )


def test_a_rate_that_earlier_patterns_leave_nothing_for_is_named(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"lrs": "all=1e-3,head=1e-2"})
    assert plan.row("head").lr == 1e-3
    assert plan.notes == ("--lrs head has no effect: earlier entries match first",)


def test_only_matrices_decay(fashion: BuiltModel, vit: BuiltModel) -> None:
    assert decays((4, 4)) and decays((4, 1, 3, 3)) and not decays((4,)) and not decays(())
    assert {row.weight_decay for row in plan_for(fashion, {}, weight_decay=0.3).rows} == {0.3}
    assert plan_for(fashion, {"freeze": "backbone"}, weight_decay=0.3).row("conv1").weight_decay == 0.0


def test_a_transformer_is_cut_into_blocks_from_stem_to_head(vit: BuiltModel) -> None:
    names = [row.name for row in plan_for(vit, {}).rows]
    assert names == ["stem", *(f"blocks.{n}" for n in range(12)), "head"]
    assert match_blocks("blocks.1*", names, "--freeze") == ("blocks.1", "blocks.10", "blocks.11")
    assert match_blocks("all", names, "--freeze") == tuple(names)
