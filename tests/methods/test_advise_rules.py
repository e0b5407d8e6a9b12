"""Each rule of the table applies where it should and not elsewhere, and contradictions end as docs/advise.md says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from warmstart.config import io
from warmstart.config.schema import leaves
from warmstart.methods.advise_decide import Advice, decide, options, others, told
from warmstart.methods.advise_facts import GB, Facts
from warmstart.methods.advise_rules import METHODS, RULES, SLOTS, rules_of

# A small trained CNN that knows the ten classes, on plenty of photographs, on a CPU: the last rule of most slots.
BASE = Facts(
    task="classes", num_classes=10, num_train=20_000, num_val=2_000, num_test=0, smallest=2_000, largest=2_000,
    height=300, width=400, num_channels=3, has_sides=False, model="timm:resnet18", family="convolutional",
    num_parameters=11_000_000, weights="trained", head="kept", num_known=10, start_accuracy=0.8, original_lr=None,
    augment_recorded=False, device="cpu", device_memory=20 * GB, is_planned=False, num_gpus=0, ram=24 * GB,
    disk=100 * GB, goal="balanced",
)  # fmt: skip
VIT = {"family": "transformer", "num_parameters": 86_000_000}
MASKS = {"task": "masks", "start_accuracy": None}

# Rule -> facts that it applies to, and facts next to them that it does not.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "method.random": ({"weights": "random", "num_train": 500}, {"num_train": 500}),
    "method.masks": (MASKS, {}),
    "method.cheap": (VIT | {"goal": "edge"}, VIT),
    "method.few": (VIT | {"num_train": 999, "goal": "best"}, VIT | {"num_train": 1000, "goal": "best"}),
    "method.some": (VIT | {"num_train": 10_000}, VIT | {"num_train": 10_001}),
    "method.plenty": (VIT | {"num_train": 1_000, "goal": "best"}, VIT | {"num_train": 1_000}),
    "method.good": ({"start_accuracy": 0.91}, {"start_accuracy": 0.9}),
    "method.head": ({"num_train": 4_999}, {"num_train": 5_000}),
    "method.blocks": ({"num_train": 10_000}, {"num_train": 10_001}),
    "method.full": ({}, {"goal": "quick"}),
    "rate.random": ({"weights": "random", "original_lr": 0.04}, {"original_lr": 0.04}),
    "rate.adapters": (VIT | {"num_train": 500, "original_lr": 0.04}, VIT | {"original_lr": 0.04}),
    "rate.recorded": ({"original_lr": 0.04}, {"original_lr": 0.04, "num_train": 500}),
    "rate.masks": (MASKS, MASKS | {"original_lr": 0.04}),
    "rate.new-head": (VIT | {"head": "mixed"}, VIT),
    "rate.transformer": (VIT, {}),
    "rate.good": ({"start_accuracy": 0.95, "goal": "best"}, {"goal": "best"}),
    "rate.head": ({"num_train": 500}, {}),
    "rate.layered": ({"head": "new", "start_accuracy": None}, {}),
    "rate.first": ({}, {"head": "new"}),
    "schedule.head": ({"num_train": 500}, {}),
    "schedule.cosine": ({}, {"num_train": 500}),
    "decay.masks": (MASKS, VIT),
    "decay.few": (VIT | {"num_train": 999}, VIT | {"num_train": 1_000}),
    "decay.transformer": (VIT | {"num_train": 1_000}, VIT | {"num_train": 999}),
    "decay.few-convolutional": ({"num_train": 999}, VIT | {"num_train": 999}),
    "decay.convolutional": ({}, VIT),
    "augment.recorded": ({"augment_recorded": True, "height": 28}, {"height": 28}),
    "augment.small": ({"width": 63}, {"width": 64}),
    "augment.overfit": ({"num_train": 10_000}, {"num_train": 10_000, "has_sides": True}),
    "augment.light": ({}, {"num_train": 500}),
    "smoothing.many": ({}, {"num_classes": 9}),
    "smoothing.none": ({"task": "labels"}, {}),
    "batch.masks": (MASKS | VIT, VIT),
    "batch.contrastive": (VIT | {"is_contrastive": True}, VIT),
    "batch.transformer": (VIT, {}),
    "batch.head": ({"num_train": 500}, {}),
    "batch.convolutional": ({}, VIT),
    "epochs.random": ({"weights": "random"}, {}),
    "epochs.quick": ({"weights": "random", "goal": "quick"}, {"goal": "edge"}),
    "epochs.best": ({"goal": "best"}, VIT | {"goal": "best", "num_train": 500}),
    "epochs.adapters": (VIT | {"goal": "edge"}, VIT | {"goal": "best", "num_train": 500}),
    "epochs.first": ({}, {"goal": "best"}),
    "patience.none": ({"num_val": 0, "weights": "random"}, {"weights": "random"}),
    "patience.random": ({"weights": "random"}, {"goal": "best"}),
    "patience.long": ({"goal": "best"}, VIT | {"goal": "best", "num_train": 500}),
    "patience.quick": ({"goal": "quick"}, {}),
    "patience.short": ({}, {"goal": "quick"}),
    "precision.half": ({"is_planned": True}, {}),
    "precision.full": ({"device": "mps"}, {"device": "cuda"}),
    "select.rare": ({"smallest": 400}, {"smallest": 401}),
    "select.usual": ({"smallest": 400, "task": "labels"}, {"smallest": 400}),
}  # fmt: skip

TOLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "warn.memory": (VIT | {"device": "cuda"}, {"device": "cuda"}),
    "warn.ram": (VIT, VIT | {"ram": 32 * GB}),
    "warn.disk": (VIT | {"disk": 19 * GB}, {"disk": 19 * GB}),
    "warn.tiny": ({"smallest": 9}, {"smallest": 10}),
    "warn.no-val": ({"num_val": 0}, {"num_val": 1}),
    "warn.val": ({"num_val": 199}, {"num_val": 0}),
    "warn.negatives": ({"is_contrastive": True}, {}),
    "warn.gpus": ({"num_gpus": 2}, {"num_gpus": 1}),
}

TRIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "try.head": ({}, {"num_train": 500}),
    "try.blocks": ({}, VIT),
    "try.lora": (VIT, {}),
    "try.full": ({"num_train": 500}, {}),
}


def chosen(changes: dict[str, Any]) -> dict[str, str]:
    """Slot -> the rule that decided it, of those that set something."""
    facts = replace(BASE, **changes)
    advice = decide(facts, {})
    rules = {decision.rule.slot: decision.rule.id for decision in advice.decisions}
    method = next(rule for rule in rules_of("method") if rule.applies(facts))
    return {"method": method.id, **rules}


@pytest.mark.parametrize("rule", [rule for rule in CASES if rule != "patience.none"])
def test_a_rule_decides_its_slot_where_it_applies_and_nowhere_else(rule: str) -> None:
    applies, silent = CASES[rule]
    slot = rule.partition(".")[0]
    assert chosen(applies)[slot] == rule
    assert chosen(silent)[slot] != rule


def test_without_val_there_is_no_patience() -> None:
    applies, silent = CASES["patience.none"]
    assert "patience" not in chosen(applies) and chosen(silent)["patience"] == "patience.random"
    assert "train.patience" not in decide(replace(BASE, **applies), {}).values


@pytest.mark.parametrize("rule", TOLD)
def test_what_is_told_is_told_where_it_applies_and_nowhere_else(rule: str) -> None:
    applies, silent = TOLD[rule]
    assert rule in {found.id for found in told(replace(BASE, **applies))}
    assert rule not in {found.id for found in told(replace(BASE, **silent))}


def beside(given: dict[str, Any] | None = None, **changes: Any) -> dict[str, Advice]:
    """Rule -> what else is worth a try."""
    facts = replace(BASE, **changes)
    return {rule.id: each for rule, each in others(decide(facts, given or {}), facts, given or {})}


@pytest.mark.parametrize("rule", TRIED)
def test_what_is_worth_a_try_is_so_where_it_applies_and_nowhere_else(rule: str) -> None:
    applies, silent = TRIED[rule]
    assert rule in beside(**applies) and rule not in beside(**silent)


def test_other_methods_and_rates_are_tried_unless_they_were_given() -> None:
    found = beside(num_train=500, head="new", start_accuracy=None)
    methods = {rule: each.method for rule, each in found.items()}
    assert list(methods.values()) == ["last-blocks", "full", "head", "head"] and all(
        not each.taken for each in found.values()
    )
    rates = {rule: (each.values["optim.lr"], each.values.get("adapt.lrs")) for rule, each in found.items()}
    assert rates["try.full"] == (1e-3, "backbone=2e-4") and rates["try.faster"] == (3e-3, None)
    assert rates["try.slower"] == (3.3e-4, None)
    layered = beside(head="new", start_accuracy=None)
    assert layered["try.faster"].values["adapt.lrs"] == "backbone=0.0006"
    assert list(beside(weights="random")) == ["try.faster", "try.slower"]
    assert list(beside({"optim.lr": 1e-4})) == ["try.head", "try.blocks"]
    assert list(beside({"adapt.freeze": ("backbone",)})) == ["try.faster", "try.slower"]
    assert beside({"adapt.freeze": ("backbone",), "optim.lr": 1e-4}) == {}


def test_every_rule_is_tried_here() -> None:
    tried = {
        *CASES,
        *TOLD,
        *TRIED,
        *(rule.id for rule in rules_of("later") + rules_of("memory") + rules_of("try")),
    }
    assert tried == {rule.id for rule in RULES} and len(RULES) == len({rule.id for rule in RULES})
    assert {found.id for found in told(BASE) if found.slot == "later"} == {r.id for r in rules_of("later")}


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_ends_with_a_rule_that_always_applies(slot: str) -> None:
    assert rules_of(slot)[-1].applies(BASE) and chosen({}).get(slot) is not None


@pytest.mark.parametrize("changes", [applies for applies, _ in CASES.values()])
def test_what_is_advised_are_settings_that_go_together(changes: dict[str, Any], tmp_path: Any) -> None:
    """Every path is in the schema, every value is valid, and no rule of the settings objects or warns."""
    advice = decide(replace(BASE, **changes), {})
    known = {leaf.path for leaf in leaves()}
    assert set(advice.values) <= known
    loaded = io.load(
        {"data": str(tmp_path), "model": "timm:resnet18"}, above=[io.Layer("advice", advice.values)]
    )
    assert loaded.warnings == ()


def test_every_method_is_made_of_settings() -> None:
    known = {leaf.path for leaf in leaves()}
    assert all(set(sets) <= known for sets in METHODS.values())


@pytest.mark.parametrize(
    ("original", "advised"),
    [
        (0.04, 8e-4),  # 0.16: .0004 to .0008
        (1e-4, 5e-5),  # 1.04: the one rate that the band and the ratio share
        (1e-3, 5e-5),
        (0.5, 1e-3),
        (2e-5, 1e-5),  # 1.16: lower still
    ],
)
def test_the_two_rules_for_a_recorded_rate_meet(original: float, advised: float) -> None:
    found = decide(replace(BASE, original_lr=original), {})
    assert found.values["optim.lr"] == pytest.approx(advised)


def method(**changes: Any) -> str:
    return decide(replace(BASE, **changes), {}).method


def test_the_thresholds_of_0_17_divide_convolutional_models() -> None:
    sizes = (999, 1_000, 4_999, 5_000, 10_000, 10_001)
    assert [method(num_train=num) for num in sizes] == ["head"] * 3 + ["last-blocks"] * 2 + ["full"]
    best = [method(num_train=num, goal="best") for num in sizes]
    assert best == ["head", "last-blocks", "last-blocks", "full", "full", "full"]
    assert method(start_accuracy=0.95) == "head" and method(start_accuracy=0.95, goal="best") == "full"


def test_the_tree_of_4_19_divides_transformers_and_few_images_win_over_the_goal() -> None:
    sizes = (999, 1_000, 10_000, 10_001)
    assert [method(num_train=n, **VIT) for n in sizes] == ["lora", "lora", "lora", "layer-wise"]
    best = [method(num_train=num, goal="best", **VIT) for num in sizes]
    assert best == ["lora", "layer-wise", "layer-wise", "layer-wise"]
    assert {method(goal=goal, **VIT) for goal in ("quick", "edge")} == {"lora"}
    # Memory is measured, and no threshold of it is asked.
    assert method(device_memory=4 * GB, device="cuda", **VIT) == "layer-wise"


@pytest.mark.parametrize(
    ("num_train", "most", "size"), [(20_000, 256, 256), (978, 256, 32), (978, 128, 32), (50, 32, 8)]
)
def test_the_batch_leaves_twenty_steps_an_epoch(num_train: int, most: int, size: int) -> None:
    assert replace(BASE, num_train=num_train).batch(most) == size


def words(advice: Advice) -> str:
    checkpointing = "+" if advice.value("train.gradient_checkpointing", False) else ""
    values = advice.values
    return (
        f"{advice.method}{checkpointing} {values.get('data.batch_size')}x{values.get('optim.accumulate', 1)}"
    )


def order(given: dict[str, Any] | None = None, **changes: Any) -> list[list[str]]:
    return [
        [words(advice) for advice in batches] for batches in options(replace(BASE, **changes), given or {})
    ]


def test_memory_is_saved_by_smaller_batches_then_checkpointing_then_adapters() -> None:
    halves = ("32x1", "16x2", "8x4", "4x8")
    found = order(num_train=20_000, **VIT)
    methods = ("layer-wise", "layer-wise+", "lora", "lora+", "qlora", "qlora+")
    assert found == [[f"{name} {size}" for size in halves] for name in methods]
    assert [each[0] for each in order(num_train=500, **VIT)] == [
        f"{name} 16x1" for name in ("lora", "lora+", "qlora", "qlora+")
    ]


def test_the_batch_of_a_contrastive_head_is_never_halved() -> None:
    found = order(num_train=300, is_contrastive=True, **VIT)
    assert found == [[f"{name} 32x1"] for name in ("lora", "lora+", "qlora", "qlora+")]


def test_a_convolutional_model_gives_up_blocks_and_masks_keep_their_decoder() -> None:
    names = [each[0].split()[0] for each in order()]
    assert names == ["full", "full+", "last-blocks", "last-blocks+", "head"]
    assert [each[0].split()[0] for each in order(num_train=500)] == ["head"]
    names = [each[0].split()[0] for each in order(**MASKS, **VIT)]
    assert names == ["layer-wise", "layer-wise+", "last-blocks", "last-blocks+"]


def test_another_method_brings_its_own_rate_and_epochs() -> None:
    full, *_, last = [next(batches) for batches in options(replace(BASE, **VIT), {})]
    assert (full.values["optim.lr"], full.values["train.epochs"]) == (1e-5, 20)
    assert (last.values["optim.lr"], last.values["train.epochs"]) == (5e-4, 10)
    assert [rule.id for rule in last.taken] == ["memory.qlora", "memory.checkpointing"]
    assert (last.values["lora.rank"], last.values["lora.bits"]) == (8, 4)
    assert "adapt.layer_decay" in full.values and "adapt.layer_decay" not in last.values


def test_what_is_given_stays_and_closes_what_it_decides() -> None:
    advice = decide(replace(BASE, **VIT), {"optim.lr": 1e-6, "train.epochs": 3})
    assert not {"optim.lr", "train.epochs"} & set(advice.values)
    adapters = decide(replace(BASE, **VIT), {"lora.rank": 4})
    assert (adapters.method, adapters.values["optim.lr"]) == ("lora", 5e-4)
    assert not {"lora.rank", "adapt.layer_decay"} & set(adapters.values)
    assert decide(BASE, {"adapt.freeze": "layer1"}).method == "last-blocks"
    assert [len(each) for each in order({"data.batch_size": 64, "adapt.freeze": "layer1"}) if each] == [1, 1]
    assert order({"train.gradient_checkpointing": False, "adapt.freeze": "layer1"}) == [
        ["last-blocks 256x1", "last-blocks 128x2", "last-blocks 64x4", "last-blocks 32x8", "last-blocks 16x16",
         "last-blocks 8x32", "last-blocks 4x64"]
    ]  # fmt: skip
