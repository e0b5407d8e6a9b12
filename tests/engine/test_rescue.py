"""Steps that fail are undone and tried again; memory that does not suffice only makes the parts smaller."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from warmstart.engine import loop, prepare, train
from warmstart.engine.checkpoint import load_checkpoint
from warmstart.engine.job import Job
from warmstart.engine.measure import update_best
from warmstart.engine.state import NotFinite, TrainState
from warmstart.errors import UserError
from warmstart.inference.memory import AtOnce
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
STEADY: dict[str, Any] = {"scheduler": "none", "epochs": 3, "log_every": "2steps"}  # 9 steps at rate 0.01


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the loss (or only its gradient) of one step NaN, as long as the rate is above a bound."""

    def arrange(step: int, above: float = 0.0, what: str = "loss") -> None:
        real = loop.train_window

        def train_window(
            part: Any, window: Any, inputs: Any, objective: Any, optimizer: Any, *rest: Any
        ) -> Any:
            def broken(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                loss, weight = objective(outputs, targets)
                return loss * math.nan if what == "loss" else loss + (outputs * 0).sqrt().sum(), weight

            counts = [int(state["step"]) for state in optimizer.state.values()]
            is_due = max(counts, default=0) + 1 == step and optimizer.param_groups[0]["lr"] > above
            return real(part, window, inputs, broken if is_due else objective, optimizer, *rest)

        monkeypatch.setattr(loop, "train_window", train_window)

    return arrange


def rescues(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metrics.rows if row["kind"] == "rescue"]


def rates(run: Run) -> dict[int, float]:
    return {row["step"]: row["lr"] for row in run.metrics.rows if row["kind"] == "train"}


def window_ids(settings: Callable[..., Any], step: int) -> list[str]:
    job: Job = train.dry_run(settings("unused", **STEADY))[0].job
    epoch, window = divmod(step - 1, 3)
    samples = job.dataset.splits["train"]
    return [samples.ids[index] for index in np.concatenate(job.windows(epoch)[window])]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_failed_step_is_undone_and_tried_again_at_half_the_rate(
    finetune: FINETUNE, settings: Any, fail: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    fail(5, above=0.009, what=what)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = finetune(**STEADY)
    (row,) = rescues(run)
    name = "the training loss is" if what == "loss" else "the gradient is"
    assert row == {
        "kind": "rescue",
        "step": 3,
        "failed_step": 5,
        "factor": 0.5,
        "is_left_out": False,
        "reason": f"{name} not finite in step 5",
        "ids": window_ids(settings, 5),
    }
    assert run.status["state"] == "finished" and run.status["rescues"] == 1
    assert rates(run) == {2: 0.01, 4: 0.005, 6: 0.005, 8: 0.005, 9: 0.005}
    assert [row["step"] for row in run.evals.rows if row["split"] == "val"] == [0, 3, 6, 9]
    state = load_checkpoint(run.path)[1].state
    assert state.rescue_factor == 0.5 and state.failed_steps == [5]
    assert "rescue 1 of 3" in caplog.text and "Back to step 3, on with 0.5 of the planned rate" in caplog.text


def test_a_run_with_a_rescue_is_resumed_to_the_bit(
    finetune: FINETUNE, settings: Any, fail: Any, interrupt_at: Any, tmp_path: Path
) -> None:
    """Interrupted before the failure (with a checkpoint that must not be the one to go back to), and after it."""
    fail(5, above=0.009)
    straight = finetune("straight", **STEADY)
    for number, steps in enumerate(((4,), (4, 5), (7,))):
        interrupt_at(*steps)
        with pytest.raises(UserError, match="interrupted"):
            train.finetune(settings(f"run{number}", **STEADY))
        for _ in steps[1:]:
            with pytest.raises(UserError, match="interrupted"):
                train.resume(str(tmp_path / f"run{number}"), {})
        resumed = Run(train.resume(str(tmp_path / f"run{number}"), {}))
        for name in (layout.MODEL, layout.STATE_TENSORS):
            assert (resumed.checkpoint(9) / name).read_bytes() == (straight.checkpoint(9) / name).read_bytes()
        assert rescues(resumed) == rescues(straight) and rates(resumed) == rates(straight)
        assert resumed.pointer(layout.BEST) == straight.pointer(layout.BEST)


def test_a_crash_right_after_a_rescue_comes_to_the_same_end(
    finetune: FINETUNE, settings: Any, fail: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The newest checkpoint knows nothing of the rescue yet: it happens again, and counts once."""
    fail(5, above=0.009)
    straight = finetune("straight", **STEADY)
    count = TrainState.advance

    def advance(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        if state.failed_steps and state.step == 5:
            raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "advance", advance)
        with pytest.raises(MemoryError):
            train.finetune(settings("run", **STEADY))
    assert len(rescues(Run(tmp_path / "run"))) == 1
    resumed = Run(train.resume(str(tmp_path / "run"), {}))
    assert rescues(resumed) == rescues(straight) and rates(resumed) == rates(straight)
    assert (resumed.checkpoint(9) / layout.MODEL).read_bytes() == (
        straight.checkpoint(9) / layout.MODEL
    ).read_bytes()


def test_images_that_fail_twice_are_left_out(finetune: FINETUNE, fail: Any) -> None:
    fail(5, above=0.004)
    run = finetune(**{**STEADY, "log_every": "1steps", "save_every": "1steps", "keep_checkpoints": 99})
    first, second = rescues(run)
    assert (first["failed_step"], second["failed_step"]) == (5, 5)
    assert not first["is_left_out"] and second["is_left_out"] and second["factor"] == 0.25
    assert run.status["state"] == "finished" and run.status["step"] == 9
    before, after, later = (load_file(run.checkpoint(step) / layout.MODEL) for step in (4, 5, 6))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["fc1.weight"], later["fc1.weight"])
    losses = {row["step"]: row["loss"] for row in run.metrics.rows if row["kind"] == "train"}
    assert losses[5] is None and losses[6] is not None


@pytest.mark.parametrize(("allowed", "failed_at"), [(0, []), (1, [5]), (2, [5, 5])])
def test_only_so_many_rescues(
    finetune: FINETUNE, settings: Any, fail: Any, tmp_path: Path, allowed: int, failed_at: list[int]
) -> None:
    fail(5)
    if allowed == 2:  # the left-out step is passed; the optimizer's count stays, so the next one is its fifth
        failed_at = [5, 5]
    with pytest.raises(
        NotFinite, match=r"the training loss is not finite in step (.|\n)*lower --lr"
    ) as error:
        finetune(**STEADY, rescue=allowed)
    run = Run(tmp_path / "run")
    assert run.status["state"] == "failed" and error.value.step == (6 if allowed == 2 else 5)
    assert [row["failed_step"] for row in rescues(run)] == failed_at
    (last,) = [row for row in run.metrics.rows if row["kind"] == "failed"]
    assert (last["step"], last["ids"]) == (error.value.step, window_ids(settings, error.value.step))
    _, saved = load_checkpoint(run.path)
    assert all(tensor.isfinite().all() for tensor in saved.weights.values())


def test_a_recovery_is_a_new_best_after_one_that_was_none(settings: Any) -> None:
    job = train.dry_run(settings("unused", select_by="loss"))[0].job
    generator = np.random.default_rng(0)
    histories = [[3.0, 2.0, 1.0], [1.0, 2.0, 0.5], [1.0, 2.0, 3.0], [2.0, math.nan, 1.0, 1.5, 0.5]]
    for values in [*histories, *(generator.integers(0, 30, (50, 20)).astype(float).tolist())]:
        state, expected = TrainState(), 0
        for number, value in enumerate(values):
            state.step = 3 * (number + 1)
            update_best(job, state, {"loss": value})
            earlier = [old for old in values[:number] if not math.isnan(old)]
            is_best = not math.isnan(value) and all(value < old for old in earlier)
            was_best = number > 0 and all(values[number - 1] < old for old in values[: number - 1])
            expected += is_best and number > 0 and (not was_best or math.isnan(values[number - 1]))
        assert state.num_recoveries == expected


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 on the CPU, which is slow and otherwise refused."""
    monkeypatch.setattr(prepare, "resolve_precision", lambda *_: (torch.float16, None))


def test_fp16_gradients_that_are_never_finite_end_the_run(
    finetune: FINETUNE, half: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scaler leaves out every step and the loss stays finite: without a look the run would end as trained."""
    real = loop.train_window
    calls = [0]

    def train_window(part: Any, window: Any, inputs: Any, objective: Any, *rest: Any) -> Any:
        def broken(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            loss, weight = objective(outputs, targets)
            return loss + (outputs * 0).sqrt().sum(), weight

        calls[0] += 1
        return real(part, window, inputs, broken if calls[0] > 5 else objective, *rest)

    monkeypatch.setattr(loop, "train_window", train_window)
    with pytest.raises(
        NotFinite, match=r"fp16's gradients of 20 steps in a row are(.|\n)*--precision bf16"
    ) as error:
        finetune(epochs=12, rescue=0, log_every="7steps", scheduler="none")
    assert error.value.step == 25
    assert Run(tmp_path / "run").status["state"] == "failed"


def test_so_many_steps_are_counted_across_rows_and_resumes(
    finetune: FINETUNE,
    settings: Any,
    half: None,
    interrupt_at: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """19 in a row are nothing yet; the count is part of the state."""
    real = loop.train_window
    bad = set(range(4, 23))

    def train_window(part: Any, window: Any, inputs: Any, objective: Any, optimizer: Any, *rest: Any) -> Any:
        def broken(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            loss, weight = objective(outputs, targets)
            return loss + (outputs * 0).sqrt().sum(), weight

        step[0] += 1
        return real(part, window, inputs, broken if step[0] in bad else objective, optimizer, *rest)

    step = [0]
    monkeypatch.setattr(loop, "train_window", train_window)
    assert finetune("fine", epochs=8, rescue=0, log_every="5steps").status["state"] == "finished"
    bad.add(23)
    step[0] = 0
    interrupt_at(14)
    with pytest.raises(UserError, match="interrupted at step 14"):
        train.finetune(settings("run", epochs=8, rescue=0, log_every="5steps"))
    assert load_checkpoint(tmp_path / "run")[1].state.num_skipped == 11
    with pytest.raises(NotFinite) as error:
        train.resume(str(tmp_path / "run"), {})
    assert error.value.step == 23


# ---- memory


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let the model run out of memory with more images than there is room for; gives the sizes that failed."""

    def arrange(training: int = 999, evaluation: int = 999) -> list[int]:
        failed: list[int] = []
        real = FashionCNN.forward

        def forward(module: FashionCNN, images: Tensor) -> Tensor:
            found = real(module, images)
            if len(images) > (training if module.training else evaluation):
                failed.append(len(images))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
            return found

        monkeypatch.setattr(FashionCNN, "forward", forward)
        return failed

    return arrange


EXACT = {"freeze_bn": True, "optimizer": "sgd", "dropout": 0.0, "batch_size": 12, "epochs": 2}


@pytest.mark.parametrize(
    "given", [{}, {"accumulate": 2, "batch_size": 10}, {"mixup": 0.4, "class_weights": "ant=3"}]
)
def test_halved_batches_train_to_the_same_weights(
    finetune: FINETUNE, room: Any, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    whole = finetune("whole", **{**EXACT, **given})
    failed = room(training=4)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        parts = finetune("parts", **{**EXACT, **given})
    assert failed == ([10, 5] if "accumulate" in given else [12, 6]), "each size fails once in the whole run"
    _, saved = load_checkpoint(parts.path)
    assert saved.state.trained_at_once.limit == 3 and saved.state.evaluated_at_once.limit is None
    for name, tensor in load_checkpoint(whole.path)[1].weights.items():
        torch.testing.assert_close(saved.weights[name], tensor, rtol=1e-3, atol=1e-6)
    for left, right in zip(parts.metrics.rows, whole.metrics.rows, strict=True):
        for key in ("loss", "grad_norm", "lr", "step"):
            if key in right:
                assert left[key] == pytest.approx(right[key], rel=1e-4)
    assert f"out of memory with {failed[0]} images at once (CUDA out of memory)" in caplog.text


def test_the_smaller_size_is_remembered_by_a_resume(
    settings: Any, room: Any, interrupt_at: Any, tmp_path: Path
) -> None:
    failed = room(training=4, evaluation=5)
    interrupt_at(3)
    with pytest.raises(UserError, match="interrupted at step 3"):
        train.finetune(settings(**EXACT))
    assert sorted(failed) == [6, 6, 12, 12] or len(failed) == len(set(failed)) + 1
    failed.clear()
    run = Run(train.resume(str(tmp_path / "run"), {}))
    assert failed == [] and run.status["state"] == "finished"
    state = load_checkpoint(run.path)[1].state
    assert state.trained_at_once.limit == 3 and state.evaluated_at_once.limit is not None


def test_an_evaluation_in_parts_gives_the_same_rows(finetune: FINETUNE, room: Any) -> None:
    whole = finetune("whole", epochs=1)
    room(evaluation=3)
    parts = finetune("parts", epochs=1)
    for left, right in zip(parts.evals.rows, whole.evals.rows, strict=True):
        assert left.keys() == right.keys()
        assert (
            left["loss"] == pytest.approx(right["loss"], rel=1e-5) and left["accuracy"] == right["accuracy"]
        )


@pytest.mark.parametrize(("given", "smallest"), [({"freeze_bn": True}, "1 image at"), ({}, "2 images at")])
def test_no_room_for_one_image_is_an_error(
    finetune: FINETUNE, room: Any, given: dict[str, Any], smallest: str, tmp_path: Path
) -> None:
    room(training=0)
    with pytest.raises(UserError, match=rf"out of memory with {smallest} once(.|\n)*--image-size"):
        finetune(**given)
    assert load_checkpoint(tmp_path / "run")[0] == 0


def test_checkpoints_of_earlier_versions_are_read() -> None:
    values = json.loads(json.dumps(TrainState(step=3, trained_at_once=AtOnce(4)).to_json()))
    assert TrainState.from_json(values) == TrainState(step=3, trained_at_once=AtOnce(4))
    new = ("trained_at_once", "evaluated_at_once", "computed_at_once", "num_skipped", "unreadable")
    for name in (*new, "good_step", "failed_steps", "rescue_factor"):
        values.pop(name)
    assert TrainState.from_json(values).trained_at_once == AtOnce()
