"""Stages on whole runs: each begins once, when it should, at its own rate; and what never began is said."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from warmstart.analysis.summary import describe_run
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]
# The val loss stays as it is.
STILL = {"lr": 1e-12, "freeze_bn": True, "eval_every": "1steps", "augment": "none"}


def begun(run: Run) -> list[tuple[int, int]]:
    """(step, stage) of every beginning, in the order of the file."""
    return [(row["step"], row["stage"]) for row in run.metrics.rows if row["kind"] == "stage"]


def largest_rates(run: Run) -> list[float]:
    return [row["lr"] for row in run.metrics.rows if row["kind"] == "train"]


def num_groups(run: Run) -> list[int]:
    return [len(row["lrs"]) for row in run.metrics.rows if row["kind"] == "train"]


def tensors(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / layout.MODEL)


def test_a_stage_may_begin_within_an_epoch(finetune: FINETUNE) -> None:
    run = finetune(unfreeze="0:head,2steps:fc1,4steps:all", keep_checkpoints=9, save_every="1steps")
    assert begun(run) == [(2, 1), (4, 2)]
    assert num_groups(run) == [2, 2, 4, 4, 10, 10]
    before, at, after = (tensors(run, step) for step in (0, 2, 4))
    moved = {name for name in before if not torch.equal(before[name], at[name])}
    assert moved == {"fc2.weight", "fc2.bias"}  # frozen norms hold their averages, too
    moved = {name.partition(".")[0] for name in at if not torch.equal(at[name], after[name])}
    assert moved == {"fc1", "bn_fc", "fc2"}


def test_a_stage_begins_once_and_is_warmed_up_once(finetune: FINETUNE) -> None:
    """Document 001's fork began its second stage again in every epoch, and never left the warmup."""
    run = finetune(
        unfreeze="0:head,loss<=100:all@5e-3",
        stage_warmup="3steps",
        scheduler="none",
        epochs=4,
        warmup="2steps",
    )
    assert begun(run) == [(3, 1)]
    first = [1e-2 * ramp for ramp in (1 / 3, 2 / 3, 1)]
    later = [5e-3 * ramp for ramp in (1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1)]
    assert largest_rates(run) == pytest.approx(first + later)
    row = next(row for row in run.metrics.rows if row["kind"] == "stage")
    loss = next(row["loss"] for row in run.evals.rows if row["split"] == "val" and row["step"] == 3)
    assert row["when"] == "loss<=100.0" and row["loss"] == loss


def test_each_plateau_is_counted_from_the_beginning_of_its_stage(finetune: FINETUNE) -> None:
    run = finetune(unfreeze="0:head,plateau:fc1,plateau:all", scheduler_patience=1, epochs=3, **STILL)
    assert begun(run) == [(3, 1), (6, 2)]  # one validation to compare with, and two that are no better


def test_a_metric_that_is_not_reached_is_said_at_the_end_and_shown(
    finetune: FINETUNE, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = finetune(unfreeze="0:head,2steps:fc1,accuracy>=1:all", **STILL)
    never = "--unfreeze accuracy>=1.0 never began: conv1, conv2, conv3 stayed frozen"
    assert begun(run) == [(2, 1)] and never in caplog.text
    assert run.status["stages_never_begun"] == [never]
    assert f"stage  {never}" in describe_run(str(run.path)).text()


def test_a_stage_that_begins_with_the_last_step_never_began(finetune: FINETUNE) -> None:
    run = finetune(unfreeze="0:head,plateau:all", scheduler_patience=4, **STILL)
    assert begun(run) == [(6, 1)]
    assert len(run.status["stages_never_begun"]) == 1
    assert finetune("other", unfreeze="0:head,5steps:all").status["stages_never_begun"] == []


def test_a_time_begins_its_stage_whatever_was_waited_for(
    finetune: FINETUNE, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = finetune(unfreeze="0:head,accuracy>=1:fc1,1:all", **STILL)
    assert begun(run) == [(3, 2)] and num_groups(run) == [2, 2, 2, 10, 10, 10]
    assert "--unfreeze accuracy>=1.0 did not come before step 3" in caplog.text


def test_plan_and_log_tell_every_stage(finetune: FINETUNE, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="warmstart"):
        run = finetune(
            unfreeze="0:head,1:backbone>.5@1e-3,f1>=.9:all@1e-4", stage_warmup="2steps", layer_decay=0.5
        )
    assert [(stage["when"], stage["step"]) for stage in run.plan["stages"]] == [
        ("0", 0),
        ("1", 3),
        ("f1>=0.9", None),
    ]
    rates = {row["name"]: row["rates"] for row in run.plan["rows"]}
    assert rates["conv3"] == pytest.approx([0, 2.5e-4, 2.5e-5])
    assert rates["conv1"] == pytest.approx([0, 0, 1e-4 / 16])
    lines = [" ".join(line.split()) for line in caplog.text.splitlines()]
    assert any(line.startswith("conv3 full -, 2.50e-04, 2.50e-05 ") for line in lines), lines
    assert "2 1 3 1.00e-03 2 conv3, fc1" in lines and "3 f1>=0.9 ? 1.00e-04 2 conv1, conv2" in lines
    said = "stage 2 of 3 (1) from step 3: conv3, fc1, head train, base rate 0.001 after 2 warmup steps"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"unfreeze": "0:head,f1_micro>=.5:all"},
            r"f1_micro>=0\.5: a run of classification does not measure",
        ),
        (
            {"unfreeze": "0:head,2:fc1,plateau:conv3,4steps:all", "epochs": 3},
            "--unfreeze 4steps is step 4, not after the stage before it \\(2, step 6\\)",
        ),
        ({"unfreeze": "0:head,1:fc1,3steps:all"}, "--unfreeze 3steps is step 3, not after"),
        ({"unfreeze": "0:head,plateau:all", "val_ratio": 0}, "--unfreeze plateau needs validation images"),
        ({"unfreeze": "0:head,f1>=.5:all", "val_ratio": 0}, r"--unfreeze f1>=0\.5 needs validation images"),
    ],
)
def test_refused(finetune: FINETUNE, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        finetune(train_ratio=0.6, **given)
    assert not (tmp_path / "run").exists()


STAGED = {
    "unfreeze": "0:head,4steps:fc1@5e-7,plateau:all@2e-6",
    "lr": 1e-6,  # slow enough for a plateau
    "freeze_bn": True,
    "stage_warmup": "3steps",
    "scheduler_patience": 0,
    "eval_every": "1steps",
    "save_every": "1steps",
    "keep_checkpoints": 9,
    "epochs": 4,
    "ema": 0.6,
}


KEPT = {"feature_cache": "on", "views": 2}


@pytest.mark.parametrize(("newest", "features"), [(3, {}), (4, {}), (5, {}), (6, {}), (4, KEPT), (5, KEPT)])
def test_killed_around_a_boundary_the_run_ends_as_if_it_had_not_been(
    newest: int,
    features: dict[str, Any],
    finetune: FINETUNE,
    settings: SETTINGS,
    tmp_path: Path,
    interrupt_at: Callable[..., None],
) -> None:
    """The rows of later steps are there already, but no checkpoint of them: as after a kill without warning."""
    straight = finetune("straight", **STAGED, **features)
    assert (straight.plan["stages"][1]["features"] is None) == (not features)
    assert begun(straight) == [(4, 1), (6, 2)]
    interrupt_at(newest + 2)
    with pytest.raises(UserError, match="interrupted at step"):
        train.finetune(settings("run", **STAGED, **features))
    run = Run(tmp_path / "run")
    for step in run.checkpoint_steps():
        if step > newest:
            shutil.rmtree(run.checkpoint(step))
    resumed = Run(train.resume(str(run.path), {}))
    assert begun(resumed) == begun(straight)
    assert largest_rates(resumed) == largest_rates(straight)
    for name in (layout.MODEL, layout.STATE_TENSORS):
        files = [(each.checkpoint(12) / name).read_bytes() for each in (straight, resumed)]
        assert files[0] == files[1]


def test_each_frozen_stage_keeps_the_features_of_its_own_prefix(finetune: FINETUNE) -> None:
    given = {"unfreeze": "0:head,2:fc1,4:conv3,5:all", "epochs": 6, "augment": "none", "lr": 1e-3}
    kept, whole = finetune("kept", **given), finetune("whole", feature_cache="off", **given)
    first, second, third, last = kept.plan["stages"]
    assert (first["features"], second["features"]) == ("output of bn_fc", "input of fc1")
    # One epoch repeats nothing; the stem trains.
    assert third["features"] is None and last["features"] is None
    reasons = [each["reason"] for each in kept.resolved["features"]["later"]]
    assert reasons[1:] == ["1 epochs of 1 views repeat nothing", "the first block trains"]
    assert all(stage["features"] is None for stage in whole.plan["stages"])
    found, wanted = (tensors(run, 18) for run in (kept, whole))
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4) for name in wanted)
    losses = [[row["loss"] for row in run.evals.rows] for run in (kept, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_features_asked_for_by_name_are_refused_where_no_stage_has_any(finetune: FINETUNE) -> None:
    with pytest.raises(UserError, match="--feature-cache on: the first block trains"):
        finetune(unfreeze="0:conv1,1:all", feature_cache="on")
