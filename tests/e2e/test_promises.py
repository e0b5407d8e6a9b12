"""The promises of DESIGN section 5 on whole runs: resume to the bit, order without workers, one path of evaluation."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from warmstart import api
from warmstart.config import io
from warmstart.engine import loop, train
from warmstart.engine.state import TrainState
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import layout
from warmstart.run.reader import Run

TIMES = {"seconds", "images_per_s"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(overlapping: Path) -> Path:
    return overlapping


@pytest.fixture
def settings(small_settings: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """3 steps of 8 images per epoch, 3 epochs, in tmp_path/NAME."""

    def make(name: str, **given: Any) -> dict[str, Any]:
        values = {**small_settings, "epochs": 3, "log_every": "2steps", "output_dir": str(tmp_path / name)}
        return {**values, **given}

    return make


Settings = Callable[..., dict[str, Any]]


def run_through(values: dict[str, Any]) -> Run:
    return Run(train.finetune(io.load(values)))


def run_interrupted(
    values: dict[str, Any],
    at_steps: tuple[int, ...],
    interrupt_at: Callable[..., None],
    workers: int | None = None,
) -> Run:
    """Start, get a real SIGINT at each of the steps, and resume after each."""
    interrupt_at(*at_steps)
    folder = Path(values["output_dir"])
    for number, step in enumerate(at_steps):
        with pytest.raises(UserError) as error:
            if number == 0:
                train.finetune(io.load(values))
            else:
                train.resume(str(folder), {"workers": workers})
        assert str(error.value) == (
            f"interrupted at step {step} of {Run(folder).resolved['pace']['total_steps']}; "
            f"everything up to it is saved\nFix: warmstart resume {folder}"
        )
        assert Run(folder).status["state"] == "interrupted" and Run(folder).status["step"] == step
    return Run(train.resume(str(folder), {"workers": workers}))


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_run(resumed: Run, straight: Run) -> None:
    """Weights, optimizer, averages, random numbers, counters, rows and choices: everything but the clock."""
    assert resumed.checkpoint_steps()[-1] == straight.checkpoint_steps()[-1]
    step = straight.pointer(layout.LAST)
    assert step is not None and resumed.pointer(layout.LAST) == step
    assert resumed.pointer(layout.BEST) == straight.pointer(layout.BEST)
    for at in {step, straight.pointer(layout.BEST)} - {None}:
        a, b = resumed.checkpoint(at), straight.checkpoint(at)
        for name in (layout.MODEL, layout.STATE_TENSORS):
            left, right = load_file(a / name), load_file(b / name)
            assert left.keys() == right.keys()
            assert not [key for key in left if not torch.equal(left[key], right[key])]
            assert (a / name).read_bytes() == (b / name).read_bytes()
        records = [json.loads((folder / layout.STATE).read_text()) for folder in (a, b)]
        for record in records:
            record["state"].pop("seconds")
        assert records[0] == records[1]
    assert without_times(resumed.metrics.rows) == without_times(straight.metrics.rows)
    assert without_times(resumed.evals.rows) == without_times(straight.evals.rows)
    keys = ("state", "step", "best_step", "best_value", "stop_reason")
    assert [resumed.status[key] for key in keys] == [straight.status[key] for key in keys]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema": 0.7, "scheduler": "step", "scheduler_step": "4steps"},
    "accumulated": {"accumulate": 2, "batch_size": 4, "label_smoothing": 0.1, "class_weights": "ant=2"},
    "unfrozen": {"unfreeze": "0:head,1:all", "lrs": "backbone=1e-3", "freeze_bn": False, "ema": 0.7},
    "stages": {
        "unfreeze": "0:head,2steps:fc1@2e-6,plateau:backbone>2,loss<=100:all@1e-6",
        "lr": 1e-6,  # slow enough for a plateau after step 4
        "freeze_bn": True,
        "stage_warmup": "2steps",
        "layer_decay": 0.7,
        "scheduler_patience": 0,
        "eval_every": "1steps",
    },
    "plateau": {
        "scheduler": "plateau",
        "scheduler_patience": 0,
        "scheduler_gamma": 0.5,
        "eval_every": "1steps",
        "warmup": "1steps",
        "min_lr": 1e-5,
    },
    "odd pace": {
        "eval_every": "2steps",
        "save_every": "50epochs",
        "log_every": "4steps",
        "select_by": "loss",
    },
    "workers": {"workers": 2, "optimizer": "lamb", "flip": 0.5, "rotation": 30},
}
WHEN = {3: (3,), 5: (5,), 24: (2, 4)}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_run_that_was_started(
    case: str, settings: Settings, interrupt_at: Callable[..., None]
) -> None:
    """Interrupted at the end of an epoch (a stage boundary), within one, and twice."""
    straight = run_through(settings("straight", **CASES[case]))
    for number, at_steps in WHEN.items():
        values = settings(f"resumed-{number}", **CASES[case])
        assert_same_run(run_interrupted(values, at_steps, interrupt_at), straight)


def test_a_resumed_channels_last_model_with_dropout_is_bit_identical(
    settings: Settings, interrupt_at: Callable[..., None]
) -> None:
    """Fused AdamW on channels_last weights, whose saved moments are not: the trap of DESIGN section 6."""
    given = {
        "model": "timm:mobilenetv3_small_100",
        "image_size": "32",
        "dropout": 0.3,
        "unfreeze": "0:head,1:all",
        "epochs": 2,
        "ema": 0.5,
    }
    straight = run_through(settings("straight", **given))
    resumed = run_interrupted(settings("resumed", **given), (2, 4), interrupt_at)
    assert_same_run(resumed, straight)


def test_an_early_stop_comes_at_the_same_step_after_a_resume(
    settings: Settings, interrupt_at: Callable[..., None]
) -> None:
    given = {"lr": 1e-12, "freeze_bn": True, "epochs": 9, "patience": 2}
    straight = run_through(settings("straight", **given))
    assert straight.status["step"] == 9 and straight.status["stop_reason"] == "no new best in 2 validations"
    for step in (6, 7):
        assert_same_run(run_interrupted(settings(f"at-{step}", **given), (step,), interrupt_at), straight)


def test_order_and_pixels_do_not_depend_on_workers(
    settings: Settings, interrupt_at: Callable[..., None]
) -> None:
    in_loop = run_through(settings("in-loop"))
    in_threads = run_through(settings("in-threads", workers=2))
    changed = run_interrupted(settings("changed"), (4,), interrupt_at, workers=2)
    assert_same_run(in_threads, in_loop)
    assert_same_run(changed, in_loop)


def test_caches_and_workers_change_no_bit(settings: Settings, tmp_path: Path) -> None:
    """Off, in memory, on disk, warm; decoded in the loop or ahead: the same pixels, so the same weights."""
    ways = [
        {"cache": "off", "workers": 0},
        {"cache": "off", "workers": 4},
        {"cache": "ram", "workers": 0},
        {"cache": "disk", "workers": 0},
        {"cache": "disk", "workers": 4},  # warm by now
    ]
    augmented = {"augment": "strong", "mixup": 0.2, "image_size": "12", "cache_dir": str(tmp_path / "cache")}
    runs = [run_through(settings(f"way{number}", **augmented, **way)) for number, way in enumerate(ways)]
    stores = [run.resolved["data"]["store"] for run in runs]
    assert stores == [None, None, "memory", *[str(tmp_path / "cache" / "pixels")] * 2]
    last = runs[0].pointer(layout.LAST)
    assert last is not None
    files = [(run.checkpoint(last) / layout.MODEL).read_bytes() for run in runs]
    assert all(file == files[0] for file in files)


def test_a_run_depends_on_its_seed(settings: Settings) -> None:
    runs = [
        run_through(settings(f"seed-{number}", seed=seed, epochs=1)) for number, seed in enumerate((0, 0, 1))
    ]
    weights = [(run.checkpoint(3) / layout.MODEL).read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]


def test_resume_needs_neither_the_first_weights_nor_their_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_at: Callable[..., None]
) -> None:
    source = run_through(settings("source", epochs=1, save_as=str(tmp_path / "start.pt")))
    assert source.status["state"] == "finished"
    given = {"weights": str(tmp_path / "start.pt")}
    straight = run_through(settings("straight", **given))
    start = (tmp_path / "start.pt").read_bytes()
    real = train.resume

    def resume_without_file(*args: Any) -> Path:
        (tmp_path / "start.pt").unlink()
        return real(*args)

    monkeypatch.setattr(train, "resume", resume_without_file)
    resumed = run_interrupted(settings("resumed", **given), (4,), interrupt_at)
    assert start and not (tmp_path / "start.pt").exists()
    assert_same_run(resumed, straight)


@pytest.mark.parametrize("stopped_early", [False, True])
def test_a_run_that_ended_without_saying_so_is_not_trained_on(
    stopped_early: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process died after the last checkpoint: resuming must only finish, not take one more step."""
    given = {"lr": 1e-12, "freeze_bn": True, "epochs": 9, "patience": 1} if stopped_early else {}
    straight = run_through(settings("straight", **given))
    with monkeypatch.context() as patch:
        patch.setattr(train, "_finish", lambda *_: (_ for _ in ()).throw(MemoryError("killed")))
        with pytest.raises(MemoryError):
            run_through(settings("killed", **given))
    resumed = Run(train.resume(str(tmp_path / "killed"), {}))
    assert_same_run(resumed, straight)


def test_a_signal_during_the_first_validation_ends_the_run_after_one_step(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = run_through(settings("straight"))
    real = loop.measure_all

    def measure(*args: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure_all", measure)
        with pytest.raises(UserError, match="interrupted at step 1 of 9"):
            run_through(settings("run"))
    assert_same_run(Run(train.resume(str(tmp_path / "run"), {})), straight)


def test_a_second_signal_leaves_at_once_and_the_run_can_be_resumed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight, before = run_through(settings("straight")), signal.getsignal(signal.SIGINT)
    count = TrainState.advance

    def advance(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            run_through(settings("run"))
    run = Run(tmp_path / "run")
    assert run.status["state"] == "failed" and run.pointer(layout.LAST) == 3
    assert signal.getsignal(signal.SIGINT) is before
    assert_same_run(Run(train.resume(str(run.path), {})), straight)


def test_a_finished_run_is_not_resumed(settings: Settings) -> None:
    run = Run(Path(api.finetune(**settings("run", epochs=1)).run))
    with pytest.raises(UserError) as error:
        api.resume(str(run.path))
    assert str(error.value) == (
        f"{run.path} is finished: nothing is left to resume\nExpected: an interrupted run\n"
        f"Fix: more epochs: `warmstart continue {run.path} --epochs N`; other data: `warmstart finetune --weights "
        f"{run.path} --data DATA`"
    )


@pytest.mark.parametrize("pictures", [True, False])
def test_what_a_finished_run_lacks_is_made_by_a_resume(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, pictures: bool
) -> None:
    """Killed after the last step was counted, and before gains, pictures and predictions of the best were written."""
    from warmstart.analysis import gain

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    values = {**settings("run"), "pictures": pictures}
    with monkeypatch.context() as patch:
        patch.setattr(gain, "evaluate", dies)
        with pytest.raises(KeyboardInterrupt):
            api.finetune(**values)
    run = Run(Path(values["output_dir"]))
    assert run.status["state"] == "finished" and not (run.path / layout.GAINS).exists()
    result = api.resume(str(run.path))
    assert [gain.split for gain in result.gains] == ["val", "test"] and len(run.gains) == 2
    assert (run.path / layout.CURVES).exists() is pictures and (run.path / layout.EVALUATIONS).is_dir()
    assert bool(list(run.path.rglob("*.png"))) is pictures
    with pytest.raises(UserError, match="nothing is left to resume"):
        api.resume(str(run.path))


def test_a_run_killed_after_its_last_file_of_weights_is_resumed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What stands in the place of --save-as is its own; a file of somebody else is never overwritten."""
    from warmstart.run import writer

    target = tmp_path / "best.pt"
    real = writer.write_status

    def write_status(run: Path, state: str, **details: Any) -> None:
        if state == "finished":
            raise KeyboardInterrupt
        real(run, state, **details)

    values = settings("run", save_as=str(target))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_status", write_status)
        with pytest.raises(KeyboardInterrupt):
            run_through(values)
    folder, content = str(values["output_dir"]), target.read_bytes()
    assert Run(Path(folder)).status["state"] == "running"
    target.write_bytes(b"somebody else's")
    with pytest.raises(
        UserError, match=r"best.pt exists already, and is not this run's(.|\n)*warmstart resume"
    ):
        train.resume(folder, {})
    assert target.read_bytes() == b"somebody else's"
    target.write_bytes(content)
    assert Run(train.resume(folder, {})).status["state"] == "finished" and target.read_bytes() == content


def test_changed_data_are_not_resumed_on(
    settings: Settings,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt_at: Callable[..., None],
) -> None:
    copied = tmp_path / "copied"
    for source in data.rglob("*.png"):
        target = copied / source.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    real = train.resume

    def resume_on_other_data(*args: Any) -> Path:
        (copied / "ant" / "00.png").unlink()
        return real(*args)

    monkeypatch.setattr(train, "resume", resume_on_other_data)
    with pytest.raises(UserError, match=r"have changed since the run was started(.|\n)*restore the data"):
        run_interrupted(settings("run", data=str(copied)), (2,), interrupt_at)


def test_files_written_since_the_start_are_named(
    settings: Settings,
    data: Path,
    tmp_path: Path,
    interrupt_at: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another picture of the same size changes no fingerprint; nor does one that was only touched."""
    copied = Path(shutil.copytree(data, tmp_path / "copied"))
    run = run_interrupted(settings("run", data=str(copied)), (2,), interrupt_at)
    assert "were written after the run was started" not in caplog.text
    path = run.path / layout.STATUS
    path.write_text(json.dumps({**run.status, "state": "interrupted"}))
    later = time.time() + 10
    os.utime(copied / "bee" / "05.png", (later, later))
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        train.resume(str(run.path), {})
    assert "files of the data were written after the run was started (1: bee/05.png)" in caplog.text


def test_validation_is_evaluate_to_the_bit(settings: Settings) -> None:
    """At equal batches the numbers are equal, not close; with averaged weights too."""
    for name, given in (
        ("plain", {}),
        ("averaged", {"ema": 0.7}),
        ("colour", {"model": "timm:mobilenetv3_small_100", "image_size": "32", "epochs": 1}),
    ):
        run = run_through(settings(name, **given))
        recorded = {row["step"]: row for row in run.evals.rows if row["split"] == "val" and "kind" not in row}
        for step in sorted({run.pointer(layout.BEST), run.pointer(layout.LAST)} - {None}):
            result = api.evaluate(f"{run.path}@{step}", split="val", device="cpu").to_json()
            assert result["metrics"] == {key: recorded[step][key] for key in result["metrics"]}
            assert result["num_samples"] == recorded[step]["num_samples"]


def test_what_the_start_model_said_is_kept(settings: Settings) -> None:
    result = api.finetune(**{**settings("run"), "model": "builtin:fashion_cnn"})
    run = Run(Path(result.to_json()["run"]))
    start = next(row for row in run.evals.rows if row["step"] == 0 and row["split"] == "val")
    kept = read_predictions(run.path / layout.PREDICTIONS / layout.predictions_name("val", 0))
    assert kept.classes == ("ant", "bee", "cat") and len(kept.ids) == start["num_samples"]
    accuracy = float((kept.scores.argmax(axis=1) == kept.targets).mean())
    assert accuracy == pytest.approx(start["accuracy"])
    gain = next(g for g in result.to_json()["gains"] if g["split"] == "val")
    assert gain["start"]["accuracy"] == start["accuracy"]
    assert gain["difference"] == pytest.approx(gain["best"]["accuracy"] - start["accuracy"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_resumed_run_on_a_gpu_is_bit_identical(
    precision: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, interrupt_at: Callable[..., None]
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        given = {"device": "cuda", "precision": precision, "ema": 0.7, "dropout": 0.3}
        straight = run_through(settings("straight", **given))
        resumed = run_interrupted(settings("resumed", **given), (2, 5), interrupt_at)
        assert_same_run(resumed, straight)
    finally:
        torch.use_deterministic_algorithms(False)
