"""Several tasks in one training: the loss of a step, the run that comes of it, and a resume to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from warmstart.analysis.evaluate import evaluate
from warmstart.config import io
from warmstart.data.batches import Batch
from warmstart.engine import train
from warmstart.engine.lessons.start import start_of
from warmstart.engine.prepare import prepare
from warmstart.engine.rescue import _ids
from warmstart.engine.several.lanes import TaskCost
from warmstart.engine.step import Arithmetic, LaneStep, train_window
from warmstart.errors import Interrupted, UserError
from warmstart.inference.restore import restore
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.tasks.classification import Classification
from warmstart.tasks.segmentation import Segmentation
from warmstart.verbs.continuing import finish

Settings = Callable[..., io.Loaded]


# ---- the loss of a step


def batch(images: np.ndarray, targets: np.ndarray, task: int) -> Batch:
    rows = np.arange(len(images))
    return Batch(images, targets, rows.astype(np.uint64), rows, task=task)


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_takes_the_gradient_of_the_formula(learned: bool) -> None:
    """sum over tasks of weight_t (n_t / n) mean loss_t; learned: exp(-s_t) mean loss_t + s_t / 2 (Kendall 2018)."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    backbone = nn.Conv2d(1, 4, 1).double()
    heads = [nn.Conv2d(4, 3, 1).double(), nn.Linear(4, 2).double()]
    own = nn.ParameterList([nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, -0.2)])
    module = nn.ModuleList([backbone, *heads, own])
    masks = rng.integers(0, 3, (2, 4, 4)).astype(np.uint8)
    masks[0, :2] = 255  # no class
    labels = rng.integers(0, 2, 5)
    pixels, squares = rng.random((2, 4, 4, 1)), rng.random((5, 4, 4, 1))

    class Part(nn.Module):
        def __init__(self, head: nn.Module, pooled: bool) -> None:
            super().__init__()
            self.head, self.pooled = head, pooled

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = backbone(x)
            return self.head(features.mean(dim=(2, 3)) if self.pooled else features)  # type: ignore[no-any-return]

    tasks = Segmentation(("a", "b", "c")), Classification(("x", "y"))
    weights = (None, None) if learned else (0.25, 2.0)
    lanes = tuple(
        LaneStep(Part(head, pooled), TaskCost(task.objective, weight, variance if learned else None))
        for head, pooled, task, weight, variance in zip(
            heads, (False, True), tasks, weights, own, strict=True
        )
    )
    parameters = [p for name, p in module.named_parameters() if learned or not name.startswith("3.")]
    before = [p.detach().clone() for p in parameters]

    def inputs(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    # the formula, by itself
    logits = heads[0](backbone(inputs(pixels)))
    mean_masks = nn.functional.cross_entropy(logits, torch.from_numpy(masks).long(), ignore_index=255)
    pooled = heads[1](backbone(inputs(squares)).mean(dim=(2, 3)))
    mean_labels = nn.functional.cross_entropy(pooled, torch.from_numpy(labels))
    costs = [
        torch.exp(-s) * mean + s / 2 if learned else weight * mean
        for mean, weight, s in zip((mean_masks, mean_labels), weights, own, strict=True)
    ]
    loss = 2 / 7 * costs[0] + 5 / 7 * costs[1]
    wanted = torch.autograd.grad(loss, parameters)

    result = train_window(
        module,
        [batch(pixels, masks, 0), batch(squares, labels, 1)],
        inputs,
        tasks[1].objective,
        torch.optim.SGD([{"params": parameters}], lr=1.0),
        Arithmetic(lanes=lanes, may_weigh_nothing=True),
    )
    # sums on the way are float32, gradients are not
    assert float(result.loss_sum / result.weight) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float(result.weight) == 7
    for old, new, gradient in zip(before, parameters, wanted, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-6, atol=1e-9)


def test_a_mask_without_any_class_weighs_nothing() -> None:
    outputs = torch.zeros(2, 3, 4, 4, requires_grad=True)
    cost = TaskCost(Segmentation(("a", "b", "c")).objective, 1.0)
    loss, weight = cost(outputs, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    assert (float(loss.detach()), float(weight)) == (0, 0)


# ---- runs


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """light: 20 grey pictures in two classes; four: 36 in four; scenes: 16 coloured pictures with masks."""
    rng = np.random.default_rng(1)

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for name, levels, num in (
        ("light", {"dark": 60, "bright": 190}, 10),
        ("four", dict(zip("0123", range(40, 230, 60), strict=False)), 9),
    ):
        for label, level in levels.items():
            for n in range(num):
                noisy = rng.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
                write(tmp_path / name / label / f"{n}.png", noisy)
    for n in range(16):
        mask = (rng.random((4, 4)) < 0.5).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        image = np.stack([np.where(mask, 200, 50)] * 3, -1).astype(np.uint8)
        write(tmp_path / "scenes" / "images" / f"{n}.png", image)
        write(tmp_path / "scenes" / "masks" / f"{n}.png", mask)
    return {name: str(tmp_path / name) for name in ("light", "four", "scenes")}


@pytest.fixture
def given(places: dict[str, str]) -> dict[str, Any]:
    return {"tasks": f"light={places['light']},four={places['four']}", "tasks_first": "animals"}


def rows_of(run: Run, split: str, task: str | None) -> list[dict[str, Any]]:
    return [row for row in run.evals.rows if row["split"] == split and row.get("task") == task]


def test_a_run_trains_measures_and_records_every_task(settings: Settings, given: dict[str, Any]) -> None:
    run = Run(train.finetune(settings(**given)))
    names = ["animals", "light", "four"]
    assert [task["name"] for task in run.tasks] == names
    assert run.resolved["select_by"] == "combined"
    for name in names:
        assert len(rows_of(run, "val", name)) == 3
    for together in rows_of(run, "val", None):
        at = [row for name in names for row in rows_of(run, "val", name) if row["step"] == together["step"]]
        assert together["combined"] == pytest.approx(np.mean([row["accuracy"] for row in at]))
        assert together["loss"] == pytest.approx(np.mean([row["loss"] for row in at]))
    plan = {row["name"]: row for row in run.plan["rows"]}
    assert [name for name in plan if name.startswith("head:")] == [f"head:{name}" for name in names]
    assert plan["head:four"]["num_parameters"] % 4 == 0
    assert len(plan) > 3, "and the shared blocks"
    first, last = (
        load_file(run.checkpoint(step) / layout.MODEL)
        for step in (run.checkpoint_steps()[0], run.pointer(layout.LAST))
    )
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert {f"fc2.task_{name}.weight" for name in names} <= moved
    # 24 + 12 + 20 or so images in micro-batches of 8, none of two tasks
    assert run.resolved["pace"]["steps_per_epoch"] == sum(
        -(-source["sizes"]["train"] // 8) for source in (run.resolved["data"], *run.resolved["sources"])
    )


def test_an_interrupted_run_ends_as_one_that_was_not(
    settings: Settings, given: dict[str, Any], interrupt_at: Callable[..., None]
) -> None:
    """Also with learned weights, several micro-batches to a step, and an average of the weights."""
    given |= {"tasks_weights": "uncertainty", "accumulate": 2, "ema": 0.9, "tasks_sampling": "temperature=2"}
    whole = train.finetune(settings("whole", **given))
    interrupt_at(3, 5)
    with pytest.raises(Interrupted):
        train.finetune(settings("parts", **given))
    with pytest.raises(Interrupted):
        train.resume(str(whole.parent / "parts"), {})
    parts = train.resume(str(whole.parent / "parts"), {})
    steps = [Run(run).pointer(layout.LAST) for run in (whole, parts)]
    assert steps[0] == steps[1] is not None
    for name in (layout.MODEL, layout.STATE_TENSORS):
        one, two = (
            load_file(Run(run).checkpoint(step) / name)
            for run, step in zip((whole, parts), steps, strict=True)
        )
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), key
    measured = [
        [{k: v for k, v in row.items() if k != "kind"} for row in Run(run).evals.rows]
        for run in (whole, parts)
    ]
    assert measured[0] == measured[1]
    learned = [row for row in Run(whole).metrics.rows if row.get("kind") == "train"]
    assert learned[0]["weight of light"] != learned[-1]["weight of light"]


def test_weights_and_shares_have_an_effect(settings: Settings, given: dict[str, Any]) -> None:
    run = Run(
        train.finetune(settings(**given, tasks_weights="animals=0,light=0", tasks_select="four=1", epochs=1))
    )
    first, last = (load_file(run.checkpoint(step) / layout.MODEL) for step in (0, run.checkpoint_steps()[-1]))
    # Adam moves nothing whose gradient is zero; decay is of matrices.
    assert torch.equal(first["fc2.task_light.bias"], last["fc2.task_light.bias"])
    assert not torch.equal(first["fc2.task_four.bias"], last["fc2.task_four.bias"])
    together, alone = rows_of(run, "val", None)[-1], rows_of(run, "val", "four")[-1]
    assert together["combined"] == alone["accuracy"]
    assert "1 x accuracy of four" in run.resolved["selected"]


def test_selecting_by_what_a_task_does_not_measure_is_refused(
    settings: Settings, given: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"the task animals does not measure it\s+Expected: combined"):
        train.finetune(settings(**given, select_by="miou"))
    with pytest.raises(UserError, match="top5 cannot choose among 3 classes"):
        train.finetune(settings(**given, select_by="top5"))


def test_a_child_of_one_task_has_the_splits_that_this_task_had(
    settings: Settings, given: dict[str, Any], places: dict[str, str]
) -> None:
    run = Run(train.finetune(settings(**given, epochs=1)))
    own = {"data": places["light"], "model": None, "weights": str(run.path), "seed": 5, "epochs": 1}
    child = Run(train.finetune(settings("child", **own)))
    assert child.splits == run.source_splits(0)


def test_a_metric_must_be_measured_by_the_tasks_that_select(
    settings: Settings, places: dict[str, str], tmp_path: Path
) -> None:
    given = {"data": places["four"], "tasks": f"scenes={places['scenes']}", "model": "builtin:microsegformer"}
    loaded = settings("run", **given, image_size="32", tasks_select="scenes=1", select_by="miou")
    assert prepare(loaded.config, {}, tmp_path / "run").job.select_by == "miou"


def test_a_broken_task_is_named(settings: Settings, given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="empty"):
        train.finetune(settings(**{**given, "tasks": f"gone={tmp_path / 'empty'}"}))
    for name, splits in (("few", ("train",)), ("whole", ("train", "val"))):
        for place in (tmp_path / name / split / label for split in splits for label in "ab"):
            place.mkdir(parents=True)
            for n in range(3):
                Image.fromarray(np.full((16, 16), 9 * n, np.uint8)).save(place / f"{n}.png")
    own = {"data": str(tmp_path / "whole"), "tasks": f"few={tmp_path / 'few'}", "val_ratio": 0.0}
    with pytest.raises(UserError, match="tasks few have no val images"):
        train.finetune(settings(**{**given, **own}))


def test_a_task_added_to_a_run_keeps_the_old_heads_and_measures_what_they_lose(
    settings: Settings, given: dict[str, Any], places: dict[str, str]
) -> None:
    old = train.finetune(settings("old", **given))
    more = {
        "weights": str(old),
        "retain": str(old),
        "data": places["light"],
        "tasks_first": "more",
        "tasks": None,
    }
    run = Run(train.finetune(settings("new", **more, model=None)))
    assert {task["name"]: task["trained"] for task in run.tasks} == {
        "more": True,
        "animals": False,
        "light": False,
        "four": False,
    }
    plan = {row["name"]: row["mode"] for row in run.plan["rows"]}
    assert (plan["head:more"], plan["head:animals"], plan["head:four"]) == ("full", "frozen", "frozen")
    before, after = (
        load_file(Run(old).checkpoint(Run(old).pointer(layout.BEST) or 0) / layout.MODEL),
        load_file(run.checkpoint(run.pointer(layout.LAST) or 0) / layout.MODEL),
    )
    assert torch.equal(before["fc2.task_four.weight"], after["fc2.task_four.weight"])
    for name in ("animals", "light", "four"):
        rows = rows_of(run, "retain", name)
        assert [row["step"] for row in rows] == [0, 2, 4]
        # the start is the old run's best step, on the test images of the old division
        restored = restore(str(old), torch.device("cpu"), task=name)
        measured = evaluate(restored, split="test").metrics
        assert rows[0]["accuracy"] == measured["accuracy"]
        assert rows[0]["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    result = finish(run.path, "cpu")
    forgotten = {gain.task: gain for gain in result.gains if gain.split == "retain"}
    assert set(forgotten) == {"animals", "light", "four"}
    assert forgotten["four"].start["accuracy"] == rows_of(run, "retain", "four")[0]["accuracy"]


def test_sets_of_labels_are_a_task_with_thresholds_of_its_own(
    settings: Settings, places: dict[str, str], tmp_path: Path
) -> None:
    rows = [
        f"light/{label}/{n}.png,{label}{'|odd' if n % 2 else ''}"
        for label in ("dark", "bright")
        for n in range(10)
    ]
    (tmp_path / "tags.csv").write_text("\n".join(["path,tags", *rows]) + "\n")
    run = Run(train.finetune(settings(tasks=f"tags={tmp_path / 'tags.csv'}", tasks_first="animals")))
    assert [task["kind"] for task in run.tasks] == ["labels", "multi-label"]
    together, tags, animals = (rows_of(run, "val", name)[-1] for name in (None, "tags", "animals"))
    assert together["combined"] == pytest.approx((tags["map"] + animals["accuracy"]) / 2)
    finish(run.path, "cpu")
    thresholds = run.of_task("tags").thresholds
    assert thresholds is not None and set(thresholds["thresholds"]) == {"dark", "bright", "odd"}
    assert run.of_task("animals").thresholds is None


def test_l2sp_holds_the_shared_weights_and_the_heads_that_were_kept(
    settings: Settings, given: dict[str, Any], places: dict[str, str]
) -> None:
    old = train.finetune(settings("old", **given, epochs=1))
    more = {
        "weights": str(old),
        "retain": str(old),
        "data": places["light"],
        "tasks_first": "more",
        "model": None,
    }
    free, held = (
        Run(train.finetune(settings(name, **more, **extra)))
        for name, extra in (("free", {}), ("held", {"retain_l2sp": 100.0}))
    )
    start = start_of(held)
    assert start is not None
    assert set(start.new) == {"fc2.task_more.weight", "fc2.task_more.bias"}
    moved = []
    for run in (free, held):
        weights = load_file(run.checkpoint(run.pointer(layout.LAST) or 0) / layout.MODEL)
        moved.append(float((weights["conv1.weight"] - start.weights["conv1.weight"]).norm()))
    assert moved[1] < moved[0] / 2


def test_a_task_is_added_to_a_run_of_one(settings: Settings, places: dict[str, str]) -> None:
    old = train.finetune(settings("old"))
    added = {
        "weights": str(old),
        "retain": str(old),
        "model": None,
        "data": places["light"],
        "tasks_first": "light",
    }
    run = Run(train.finetune(settings("new", **added)))
    name = next(task["name"] for task in run.tasks if not task["trained"])
    wanted = evaluate(restore(str(old), torch.device("cpu")), split="test").metrics["accuracy"]
    assert rows_of(run, "retain", name)[0]["accuracy"] == wanted
    with pytest.raises(UserError, match="the tasks of the run that --weights names"):
        train.finetune(settings("other", **{**added, "retain": places["four"]}))


def test_masks_and_labels_share_an_encoder(settings: Settings, places: dict[str, str]) -> None:
    given = {
        "data": places["four"],
        "tasks": f"scenes={places['scenes']}",
        "model": "builtin:microsegformer",
        "image_size": "32",
        "batch_size": 4,
        "lr": 1e-3,
        "tasks_sampling": "equal",
    }
    run = Run(train.finetune(settings(**given)))
    assert [task["kind"] for task in run.tasks] == ["labels", "masks"]
    assert "miou" in rows_of(run, "val", "scenes")[-1]
    assert "accuracy" in rows_of(run, "val", "four")[-1]
    together = rows_of(run, "val", None)[-1]
    assert together["combined"] == pytest.approx(
        (rows_of(run, "val", "scenes")[-1]["miou"] + rows_of(run, "val", "four")[-1]["accuracy"]) / 2
    )
    best = run.pointer(layout.BEST)
    for name, metric in (("scenes", "miou"), ("four", "accuracy")):
        measured = evaluate(restore(str(run.path), torch.device("cpu"), task=name), split="val").metrics
        (row,) = [
            row for row in rows_of(run, "val", name) if row["step"] == best and row.get("kind") != "evaluate"
        ]
        assert measured[metric] == row[metric]
        assert measured["loss"] == row["loss"]
    with pytest.raises(UserError, match="says a class of every image, and the data have masks"):
        train.finetune(settings("other", **{**given, "model": "builtin:fashion_cnn", "image_size": "16"}))


def test_a_dry_run_and_a_rescue_know_the_tasks(settings: Settings, given: dict[str, Any]) -> None:
    prepared, probe = train.dry_run(settings("dry", **given))
    assert probe.seconds_per_step > 0
    assert json.dumps(prepared.resolved["tasks"])
    ids = _ids(prepared.job, 1)
    assert 2 <= len(ids) <= 9
    assert len({name.split("/")[0] for name in ids} & {"animals", "light", "four"}) == 1
