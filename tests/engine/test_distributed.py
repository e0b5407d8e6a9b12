"""Two real processes under torchrun against one: the same run to rounding, and an end with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fresh
from warmstart import api
from warmstart.config.schema import ModelConfig
from warmstart.engine.distributed import World
from warmstart.models.build import build
from warmstart.run import layout
from warmstart.run.reader import Run

# Every process runs this; the steps of the story are in the first argument as JSON.
Told = tuple[Path, list[list[str]], str]  # folder of the runs, what each process said, stderr

STORY = """
import json, os, signal, sys
from warmstart import api
from warmstart.engine.state import TrainState
from warmstart.errors import UserError

rank, told = int(os.environ["RANK"]), open(f"told-{os.environ['RANK']}.txt", "w")
count = TrainState.advance
for verb, settings, trouble in json.loads(sys.argv[1]):
    def advance(state, steps_per_epoch):
        count(state, steps_per_epoch)
        if trouble and (rank, state.step) == (trouble["rank"], trouble["step"]):
            if trouble["kind"] == "SIGINT":
                os.kill(os.getpid(), signal.SIGINT)
            elif trouble["kind"] == "error":
                raise MemoryError("no more memory here")
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    TrainState.advance = advance
    try:
        result = getattr(api, verb)(**settings)
        print("done", result.num_samples, file=told, flush=True)
    except UserError as error:
        print(type(error).__name__, error.happened, file=told, flush=True)
    except MemoryError as error:
        print(type(error).__name__, error, file=told, flush=True)
"""


def launch(
    steps: list[tuple[str, dict[str, Any], dict[str, Any] | None]], folder: Path
) -> tuple[list[list[str]], str]:
    """The lines that each process told, and everything on stderr."""
    script = folder / "story.py"
    script.write_text(STORY)
    words = ["--standalone", "--nproc_per_node", "2", script, json.dumps(steps)]
    done = fresh.run(*words, module="torch.distributed.run", folder=folder)
    return [(folder / f"told-{rank}.txt").read_text().splitlines() for rank in (0, 1)], done.stderr


def rows(run: Run) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in run.metrics.rows
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, overlapping: Path) -> Told:
    """One launch for all tests here: starting two processes that import torch takes seconds."""
    folder = tmp_path_factory.mktemp("two")
    held = settings(overlapping, folder / "held", freeze_bn=True, **STAGES)
    live = {
        name: settings(overlapping, folder / name, **LIVE)
        for name in ("straight", "resumed", "failing", "killed")
    }
    steps = [
        ("finetune", held, None),
        ("distill", settings(overlapping, folder / "taught", teacher=str(folder / "held"), **TAUGHT), None),
        ("finetune", settings(overlapping, folder / "kept", **KEPT), None),
        ("finetune", live["straight"], None),
        ("finetune", live["resumed"], {"rank": 1, "step": 4, "kind": "SIGINT"}),
        ("resume", {"run": str(folder / "resumed")}, None),
        ("finetune", live["failing"], {"rank": 1, "step": 4, "kind": "error"}),
        ("finetune", live["killed"], {"rank": 1, "step": 4, "kind": "SIGKILL"}),
    ]
    return folder, *launch(steps, folder)


CLASSES = ("ant", "bee", "cat")
STAGES = {
    "unfreeze": "0:head,loss<=100:all",
    "optimizer": "sgd",
    "batch_size": 7,
    "accumulate": 2,
    "dropout": 0,
}
KEPT = {"freeze": "conv*", "feature_cache": "on", "views": 2, "dropout": 0, "freeze_bn": True}
TAUGHT = {"distill.hints": 1.0, "seed": 1, "dropout": 0, "freeze_bn": True, "batch_size": 6}
LIVE = {"dropout": 0.5, "ema": 0.7, "batch_size": 8}


def settings(data: Path, run: Path, **given: Any) -> dict[str, Any]:
    return {
        "data": str(data),
        "model": "builtin:fashion_cnn",
        "weights": "none",
        "image_size": "16",
        "train_ratio": 0.6,
        "val_ratio": 0.25,
        "lr": 0.001,
        "epochs": 3,
        "log_every": "1steps",
        "workers": 0,
        "device": "cpu",
        "output_dir": str(run),
        **given,
    }


def test_two_processes_are_one_run_to_rounding(
    told: Told, overlapping: Path, tmp_path: Path, one_thread: None
) -> None:
    two = Run(told[0] / "held")
    one = Run(Path(api.finetune(**settings(overlapping, tmp_path / "held", freeze_bn=True, **STAGES)).run))
    last = one.pointer(layout.LAST)
    assert last is not None and two.pointer(layout.LAST) == last
    left, right = (load_file(run.checkpoint(last) / layout.MODEL) for run in (one, two))
    start = build(
        ModelConfig(name="builtin:fashion_cnn", weights="none"), {"image_size": (16, 16)}, CLASSES, 0
    )
    for name, before in start.module.named_parameters():
        assert not name.startswith("bn") or torch.equal(left[name], right[name]), "held norms"
        difference, moved = (left[name] - right[name]).norm(), (left[name] - before).norm()
        assert difference <= 1e-3 * moved, f"{name}: {difference:.2e} of {moved:.2e}"
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(two)], (
        "only one process writes rows"
    )
    for one_row, two_row in zip(rows(one), rows(two), strict=True):
        key = {"train": "loss", "epoch": "train_loss_avg", "stage": "loss"}[one_row["kind"]]
        assert two_row[key] == pytest.approx(one_row[key], rel=1e-5), one_row
    for one_row, two_row in zip(one.evals.rows, two.evals.rows, strict=True):
        assert two_row["num_samples"] == one_row["num_samples"], "an image was counted twice"
        assert two_row["loss"] == pytest.approx(one_row["loss"], rel=1e-5)
        assert two_row["accuracy"] == one_row["accuracy"]
    assert two.resolved["num_processes"] == 2 and one.resolved["num_processes"] == 1


def test_features_are_shared_and_each_image_counts_once(
    told: Told, overlapping: Path, tmp_path: Path, one_thread: None
) -> None:
    two = Run(told[0] / "kept")
    one = Run(Path(api.finetune(**settings(overlapping, tmp_path / "kept", **KEPT)).run))
    assert one.resolved["features"] == two.resolved["features"] and one.resolved["features"]["cut"]
    for one_row, two_row in zip(one.evals.rows, two.evals.rows, strict=True):
        assert two_row["num_samples"] == one_row["num_samples"]
        assert two_row["loss"] == pytest.approx(one_row["loss"], rel=1e-4)


def test_a_teacher_and_its_hints_are_shared(
    told: Told, overlapping: Path, tmp_path: Path, one_thread: None
) -> None:
    two, teacher = Run(told[0] / "taught"), str(told[0] / "held")
    one = Run(Path(api.distill(**settings(overlapping, tmp_path / "taught", teacher=teacher, **TAUGHT)).run))
    taught = [[row for row in rows(run) if row["kind"] == "train"] for run in (one, two)]
    for one_row, two_row in zip(*taught, strict=True):
        for name in ("loss", "distill", "hints"):
            assert two_row[name] == pytest.approx(one_row[name], rel=1e-3, abs=1e-6), one_row


def test_all_processes_get_the_result_and_one_tells_the_story(told: Told) -> None:
    _, lines, stderr = told
    assert lines[0] == [
        *["done 6"] * 4,
        "Interrupted interrupted at step 4 of 9; everything up to it is saved",
        "done 6",
        f"UserError {DIED}",
        "UserError another of the 2 processes ended without a word (killed, or out of memory?)",
    ]
    quiet = "ReportedElsewhere interrupted at step 4 of 9; everything up to it is saved"
    assert lines[1] == [*["done 6"] * 4, quiet, "done 6", "MemoryError no more memory here"]
    assert stderr.count("2 processes: each takes its part of every batch of 7") == 1


DIED = "process 1 of 2: MemoryError: no more memory here"


def test_a_resumed_run_of_two_is_the_run_that_was_started(told: Told) -> None:
    straight, resumed = Run(told[0] / "straight"), Run(told[0] / "resumed")
    last = straight.pointer(layout.LAST)
    assert last is not None and resumed.status["state"] == straight.status["state"] == "finished"
    for name in (layout.MODEL, layout.STATE_TENSORS):
        assert (straight.checkpoint(last) / name).read_bytes() == (
            resumed.checkpoint(last) / name
        ).read_bytes()
    assert [row for row in rows(resumed) if row["kind"] != "resume"] == rows(straight)
    state = load_file(straight.checkpoint(last) / layout.STATE_TENSORS)
    assert not torch.equal(state["random.0.cpu"], state["random.1.cpu"]), (
        "dropout must differ between processes"
    )


def test_a_process_that_fails_ends_the_run_with_its_reason(told: Told) -> None:
    run = Run(told[0] / "failing")
    assert run.status["state"] == "failed" and DIED in run.status["reason"]
    assert run.pointer(layout.LAST) == 3, "the last checkpoint is intact"


def test_a_process_that_is_killed_ends_the_run(told: Told) -> None:
    run = Run(told[0] / "killed")
    assert run.status["state"] == "failed"
    assert "another of the 2 processes ended without a word" in run.status["reason"]


def test_no_process_is_left_a_single_image() -> None:
    for size in (2, 3, 4):
        for num in range(1, 20):
            pieces = [World(rank, size).part(np.arange(num)) for rank in range(size)]
            assert np.concatenate(pieces).tolist() == list(range(num))
            assert num == 1 or 1 not in map(len, pieces), (num, size)
