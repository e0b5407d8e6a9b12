"""The plan: every parameter in one row, patterns that name something, nothing silently without effect."""

from __future__ import annotations

from itertools import chain

import pytest

from warmstart.adapt.apply import apply_stage
from warmstart.adapt.lora import choose_lora
from warmstart.adapt.patterns import match_blocks, with_margin_head
from warmstart.adapt.plan import Plan, decays, make_plan
from warmstart.config.schema import AdaptConfig, Config, ModelConfig, OptimConfig
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
        {"unfreeze": "0:head,plateau:backbone>.5@1e-4,f1>=.8:all"},
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
    assert [row.from_stage for row in plan.rows] == [2, 2, 2, 1, 0]
    assert [str(stage.trigger) for stage in plan.stages] == ["0", "1", "3"]
    assert not plan.row("fc1").trains_in(0) and plan.row("fc1").trains_in(1)
    assert plan_for(fashion, {"unfreeze": "0:head,2:backbone"}).row("conv1").from_stage == 1
    written = plan.to_json(7)
    assert [row["from_step"] for row in written["rows"]] == [21, 21, 21, 7, 0]
    assert written["stages"][2] == {
        "when": "3",
        "step": 21,
        "factor": 1.0,
        "blocks": ["conv1", "conv2", "conv3"],
    }
    assert len(plan_for(fashion, {}).stages) == 1


def test_stages_wait_for_what_is_written_in_their_order(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"unfreeze": "0:head,plateau:fc1,plateau:conv3,f1>=.80:conv2,40steps:all"})
    assert [str(stage.trigger) for stage in plan.stages] == ["0", "plateau", "plateau", "f1>=0.8", "40steps"]
    assert [row.from_stage for row in plan.rows] == [4, 3, 2, 1, 0]
    assert [row["from_step"] for row in plan.to_json(7)["rows"]] == [40, None, None, None, 0]


def test_neighbours_that_wait_for_the_same_are_one_stage(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"unfreeze": "0:head,0steps:fc1,f1>=.8:conv1,f1>=.8:conv2@1e-4"})
    assert [plan.new_blocks(number) for number in range(2)] == [["fc1", "head"], ["conv1", "conv2"]]
    assert plan.stages[1].factor == pytest.approx(0.1)


def test_a_stage_has_its_rate_until_another_one_is_given(fashion: BuiltModel) -> None:
    unfreeze = "0:head,1:fc1@1e-4,2:conv3,3:all@1e-5"
    plan = plan_for(fashion, {"unfreeze": unfreeze, "lrs": "conv3=1e-2", "layer_decay": 0.5}, lr=1e-3)
    rates = {row.name: [plan.rate(row, stage) for stage in range(4)] for row in plan.rows}
    assert rates["head"] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])
    assert rates["fc1"] == pytest.approx([0, 0.5e-4, 0.5e-4, 0.5e-5])
    assert rates["conv3"] == pytest.approx([0, 0, 1e-2, 1e-2])  # its own rate: no stage changes it
    assert rates["conv1"] == pytest.approx([0, 0, 0, 1e-5 * 0.5**4])
    assert [row["rates"] for row in plan.to_json(3)["rows"]] == list(rates.values())


def test_unfreezing_that_cannot_be_meant_is_refused(fashion: BuiltModel) -> None:
    assert refusal(fashion, {"unfreeze": "1:head,2:all"}) == (
        "--unfreeze names no block for epoch 0, so nothing would train before epoch 1\n"
        "Expected: an entry for epoch 0, such as 0:head"
    )
    assert "nothing would train until plateau" in refusal(fashion, {"unfreeze": "plateau:head"})
    for again in ("0:all,2:conv1", "0:head,1:backbone,2:conv1", "0:head,1:backbone>4,plateau:conv1"):
        assert "conv1 unfreezes nothing: conv1 train already by then" in refusal(fashion, {"unfreeze": again})
    assert refusal(fashion, {"unfreeze": "0:head,1:fc1@1e-4,1:conv3@1e-5"}).startswith(
        "--unfreeze 1:fc1@0.0001,1:conv3@1e-05: one stage with 2 base rates"
    )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("backbone>1", ["fc1"]),
        ("backbone>3", ["conv2", "conv3", "fc1"]),
        ("backbone > 4", ["conv1", "conv2", "conv3", "fc1"]),
        ("backbone>.5", ["conv3", "fc1"]),
        ("backbone>0.3", ["conv3", "fc1"]),
        ("backbone<1", ["conv1"]),
        ("backbone<.75", ["conv1", "conv2", "conv3"]),
    ],
)
def test_a_part_of_the_backbone_by_count_or_share(
    fashion: BuiltModel, pattern: str, found: list[str]
) -> None:
    names = [block.name for block in fashion.blocks]
    assert match_blocks(pattern, names, "--unfreeze 1") == tuple(found)
    plan = plan_for(fashion, {"freeze": pattern})
    assert [row.name for row in plan.rows if row.mode == "frozen"] == found


@pytest.mark.parametrize(
    "pattern", ["backbone>5", "backbone>0", "backbone>.0", "backbone>1.0", "backbone<1.5"]
)
def test_a_part_that_the_backbone_has_not(fashion: BuiltModel, pattern: str) -> None:
    assert refusal(fashion, {"unfreeze": f"0:head,1:{pattern}"}).startswith(
        f"--unfreeze 1: {pattern!r} names no part of the 4 blocks of the backbone"
    )


def test_layer_decay_reaches_from_the_head_to_the_stem(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"layer_decay": 0.5}, lr=0.8)
    assert [row.lr for row in plan.rows] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    named = plan_for(fashion, {"layer_decay": 0.5, "lrs": "conv2=1e-6"}, lr=0.8)
    assert [row.lr for row in named.rows] == pytest.approx([0.05, 1e-6, 0.2, 0.4, 0.8])
    frozen = plan_for(fashion, {"layer_decay": 0.5, "freeze": "conv2"}, lr=0.8)
    # The depth is the model's.
    assert [row.lr for row in frozen.rows] == pytest.approx([0.05, 0, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("timm:vit_tiny_patch16_224", ("cls_token", "pos_embed", "patch_embed.proj.weight")),
        ("timm:mobilenetv3_small_100", ("conv_stem.weight", "bn1.weight")),
        ("torchvision:resnet18", ("conv1.weight", "bn1.weight")),
    ],
)
def test_stem_and_embeddings_have_the_lowest_rate(name: str, lowest: tuple[str, ...]) -> None:
    """Document 003's trainer left its embeddings at the full rate."""
    built = build(ModelConfig(name=name, weights="none"), {"image_size": (32, 32)}, CLASSES, 0)
    rates = rate_of_parameters(built, 0.75)
    assert len(set(rates.values())) == len(built.blocks)
    smallest = 0.75 ** (len(built.blocks) - 1)
    for parameter in lowest:
        assert rates[parameter] == pytest.approx(smallest) == min(rates.values())
    head = {rate for parameter, rate in rates.items() if parameter.startswith(f"{built.head}.")}
    assert head == {1.0} == {max(rates.values())}


def rate_of_parameters(built: BuiltModel, decay: float) -> dict[str, float]:
    plan = plan_for(built, {"layer_decay": decay}, lr=1.0)
    groups = apply_stage(built.module, plan, 0)
    return {name: group.lr for group in groups for name in group.names}


def test_layer_decay_is_timms_own_for_a_transformer(vit: BuiltModel) -> None:
    from timm.optim import param_groups_layer_decay

    rates, reference = rate_of_parameters(vit, 0.75), {}
    names = {id(parameter): name for name, parameter in vit.module.named_parameters()}
    for group in param_groups_layer_decay(vit.module, layer_decay=0.75):
        reference |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    assert reference.keys() == rates.keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(reference[name]), name


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


def test_rates_without_effect_are_named(fashion: BuiltModel) -> None:
    only_head = plan_for(fashion, {"freeze": "backbone", "layer_decay": 0.9})
    said = "--layer-decay has no effect: every block below the head is frozen or named in --lrs"
    assert only_head.notes == (said,) == plan_for(fashion, {"lrs": "backbone=1", "layer_decay": 0.9}).notes
    named = plan_for(fashion, {"unfreeze": "0:head,1:all@1e-5", "lrs": "all=1e-3"})
    assert named.notes == ("the rate of --unfreeze 1 has no effect: --lrs names all that trains then",)


def test_a_rate_that_earlier_patterns_leave_nothing_for_is_named(fashion: BuiltModel) -> None:
    plan = plan_for(fashion, {"lrs": "all=1e-3,head=1e-2"})
    assert plan.row("head").lr == 1e-3
    assert plan.notes == ("--lrs head has no effect: earlier entries match first",)


def test_head_is_not_the_margin_head_where_that_has_a_rate_of_its_own() -> None:
    built = build(ModelConfig(name="builtin:ocec-c8-b2-cosface", weights="none"), {}, CLASSES[:2], 0)
    for lrs in ("backbone=1e-5,head=5e-5,margin_head=1e-4", "margin_head=1e-4,head=5e-5,backbone=1e-5"):
        plan = plan_for(built, {"lrs": lrs})
        assert plan.row("margin_head").lr == 1e-4 and plan.row("stem").lr == 1e-5
        assert plan.notes == ("--lrs head has no effect: margin_head is the head, with an entry of its own",)
    alone = plan_for(built, {"lrs": "backbone=1e-5,head=5e-5"})
    assert alone.row("margin_head").lr == 5e-5 and not alone.notes


def test_a_margin_head_has_the_documents_name_in_any_model(fashion: BuiltModel) -> None:
    names = [block.name for block in fashion.blocks]
    for lrs in ("backbone=1e-5,head=5e-5,margin_head=1e-4", "margin_head=1e-4,head=5e-5,backbone=1e-5"):
        asked = AdaptConfig(lrs=lrs, unfreeze="0:margin_head,1:all")
        adapt = with_margin_head(asked, names)
        plan = plan_for(fashion, adapt.model_dump())
        assert plan.row("head").lr == 1e-4 and plan.row("conv1").lr == 1e-5
        assert plan.row("head").from_stage == 0 and plan.row("conv1").from_stage == 1
        assert any(note.startswith("--lrs head has no effect") for note in plan.notes)
    assert with_margin_head(AdaptConfig(freeze="margin_head"), names).freeze == ("head",)
    with pytest.raises(UserError, match="'margin_head' names no block"):
        plan_for(fashion, {"lrs": "margin_head=1e-4"})


def lora_plan(adapt: dict[str, object], **lora: object) -> Plan:
    """Of a fresh ViT with adapters."""
    config = Config.model_validate({"lora": {"rank": 2, **lora}, "adapt": adapt})
    settings = ModelConfig(name="timm:vit_tiny_patch16_224", weights="none")
    built = build(settings, {"image_size": (32, 32)}, CLASSES, 0, choose=choose_lora(config))
    plan = plan_for(built, adapt)
    named = [name for row in plan.rows for name in (*row.trainable, *row.held)]
    assert sorted(named) == sorted(name for name, _ in built.module.named_parameters())
    groups = chain(*(group.names for group in apply_stage(built.module, plan, plan.last_stage)))
    assert set(groups) == {name for name, p in built.module.named_parameters() if p.requires_grad}
    return plan


def test_with_adapters_nothing_else_of_the_backbone_trains() -> None:
    plan = lora_plan({})
    assert modes(plan) == {
        "stem": "frozen",
        **{f"blocks.{number}": "lora" for number in range(12)},
        "head": "full",
    }
    row = plan.row("blocks.3")
    assert row.trainable == ("blocks.3.attn.qkv.lora_A.weight", "blocks.3.attn.qkv.lora_B.weight")
    assert "blocks.3.attn.qkv.weight" in row.held and row.num_trainable == 2 * 192 + 2 * 576
    assert plan.notes == ("no layer of stem has an adapter: frozen for the whole run",)


def test_frozen_blocks_get_no_adapters_and_stages_and_rates_hold_for_them() -> None:
    plan = lora_plan({"freeze": "backbone<5", "layer_decay": 0.5})
    assert [row.name for row in plan.rows if row.mode == "lora"] == [f"blocks.{n}" for n in range(4, 12)]
    assert plan.row("blocks.11").lr == plan.row("head").lr / 2
    assert not any("lora_" in name for name in plan.row("blocks.0").held)
    staged = lora_plan({"unfreeze": "0:head,1:blocks.11,2:stem,3:blocks.10", "lrs": "blocks.11=0.5"})
    assert [row.from_stage for row in staged.rows if row.mode == "lora"] == [3, 1]
    assert staged.rate(staged.row("blocks.11"), 1) == 0.5 and staged.new_blocks(2) == []
    assert "--unfreeze 2 adds nothing: its blocks have no adapters" in staged.notes


def test_scales_of_dora_do_not_decay() -> None:
    row = lora_plan({}, kind="dora").row("blocks.0")
    assert "blocks.0.attn.qkv.lora_magnitude" in row.trainable and row.weight_decay > 0


def test_only_matrices_decay(fashion: BuiltModel, vit: BuiltModel) -> None:
    assert decays("a.weight", (4, 4)) and decays("a.weight", (4, 1, 3, 3))
    assert not decays("a.bias", (4,)) and not decays("a.scale", ())
    assert not decays("a.lora_magnitude", (1, 4, 1, 1))
    assert {row.weight_decay for row in plan_for(fashion, {}, weight_decay=0.3).rows} == {0.3}
    assert plan_for(fashion, {"freeze": "backbone"}, weight_decay=0.3).row("conv1").weight_decay == 0.0


def test_a_transformer_is_cut_into_blocks_from_stem_to_head(vit: BuiltModel) -> None:
    names = [row.name for row in plan_for(vit, {}).rows]
    assert names == ["stem", *(f"blocks.{n}" for n in range(12)), "head"]
    assert match_blocks("blocks.1*", names, "--freeze") == ("blocks.1", "blocks.10", "blocks.11")
    assert match_blocks("all", names, "--freeze") == tuple(names)
