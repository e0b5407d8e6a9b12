"""Runs from start to end: selection, stopping, pace, refusals, and what the run directory says afterwards."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart.analysis.gain import measure_gains
from warmstart.data.augment import Augment
from warmstart.data.geometry import MaskRules
from warmstart.engine import prepare, train
from warmstart.engine.checkpoint import load_checkpoint
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]


def val_rows(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.evals.rows if row.get("split") == "val" and "kind" not in row]


def trained_rows(run: Run, kind: str = "train") -> list[dict[str, Any]]:
    return [row for row in run.metrics.rows if row["kind"] == kind]


def test_a_run_leaves_what_it_promises(finetune: FINETUNE) -> None:
    run = finetune()
    assert run.status["state"] == "finished" and run.status["step"] == 6
    assert run.status["best_step"] == run.pointer(layout.BEST) and run.status["select_by"] == "accuracy"
    assert [row["step"] for row in trained_rows(run)] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in trained_rows(run, "epoch")] == [3, 6]
    assert [row["step"] for row in val_rows(run)] == [0, 3, 6]
    assert run.plan["total_steps"] == 6 and [row["mode"] for row in run.plan["rows"]] == ["full"] * 5
    assert {"config.yaml", "resolved.json", "plan.json", "log.txt"} <= {p.name for p in run.path.iterdir()}
    assert not (run.path / layout.QUARANTINE).exists()


def test_an_epochs_loss_is_the_mean_over_its_items(finetune: FINETUNE) -> None:
    run = finetune(batch_size=10, epochs=1)  # 24 images: windows of 10, 10 and 4
    rows = trained_rows(run)
    mean = np.average([row["loss"] for row in rows], weights=[10, 10, 4])
    assert trained_rows(run, "epoch")[0]["train_loss_avg"] == pytest.approx(mean, rel=1e-6)


def test_a_row_of_several_steps_is_their_mean(finetune: FINETUNE) -> None:
    each, third = finetune("each", epochs=1), finetune("third", epochs=1, log_every="3steps")
    mean = np.mean([row["loss"] for row in trained_rows(each)])
    assert [row["loss"] for row in trained_rows(third)] == [pytest.approx(mean, rel=1e-6)]


def test_rates_follow_the_schedule_with_planned_ratios(finetune: FINETUNE) -> None:
    run = finetune(lrs="backbone=1e-4,head=1e-2", min_lr=0.001)
    lrs = [row["lrs"] for row in trained_rows(run)]
    floor = 0.1
    for step, rates in enumerate(lrs):
        shape = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / 6))
        assert sorted(set(rates)) == [pytest.approx(1e-4 * shape), pytest.approx(1e-2 * shape)]


def test_frozen_blocks_are_the_same_file_after_training(finetune: FINETUNE) -> None:
    for name, given in (("plain", {}), ("averaged", {"ema": 0.5})):
        run = finetune(name, freeze="conv*", save_every="1steps", weight_decay=0.5, **given)
        start = finetune(f"{name}-start", max_steps=1, freeze="conv*", lr=1e-12, weight_decay=0)
        end, begin = (
            load_file(run.checkpoint(6) / layout.MODEL),
            load_file(start.checkpoint(1) / layout.MODEL),
        )
        frozen = [key for key in end if key.startswith(("conv", "bn1.", "bn2.", "bn3."))]
        assert len(frozen) == 21 and all(torch.equal(end[key], begin[key]) for key in frozen)
        assert not torch.equal(end["fc1.weight"], begin["fc1.weight"])
        assert not torch.equal(end["bn_fc.running_mean"], begin["bn_fc.running_mean"])


def test_freeze_bn_keeps_norms_and_averages_keep_their_buffers(finetune: FINETUNE) -> None:
    run = finetune(freeze_bn=True, ema=0.5)
    end = load_file(run.checkpoint(6) / layout.MODEL)
    for norm in ("bn1", "bn2", "bn3", "bn_fc"):
        assert torch.equal(end[f"{norm}.weight"], torch.ones_like(end[f"{norm}.weight"]))
        assert torch.equal(end[f"{norm}.running_mean"], torch.zeros_like(end[f"{norm}.running_mean"]))
        assert end[f"{norm}.num_batches_tracked"] == 0
    assert not torch.equal(end["fc2.bias"], load_file(run.checkpoint(3) / layout.MODEL)["fc2.bias"])


def test_unfreezing_trains_a_block_from_its_epoch_on(finetune: FINETUNE) -> None:
    run = finetune(unfreeze="0:head,1:fc1", epochs=2, save_every="1steps", select_by="loss")
    counts = [len(row["lrs"]) for row in trained_rows(run)]
    assert counts == [2, 2, 2, 4, 4, 4]
    early = finetune("early", unfreeze="0:head,1:fc1", epochs=2, max_steps=3)
    late = finetune("late", unfreeze="0:head,1:fc1", epochs=2, max_steps=5)
    before, after = (load_file(r.checkpoint(s) / layout.MODEL) for r, s in ((early, 3), (late, 5)))
    assert not torch.equal(before["fc1.weight"], after["fc1.weight"])
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_a_stage_that_the_run_never_reaches_is_named(
    finetune: FINETUNE, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        finetune(unfreeze="0:head,1:all", epochs=2, max_steps=3)
    assert (
        "--unfreeze 1 has no effect: the run ends at step 3, before conv1, conv2, conv3, fc1" in caplog.text
    )


# ---- selection


def test_step_0_takes_part_only_if_its_head_was_kept(finetune: FINETUNE) -> None:
    first = finetune("first", epochs=4)
    new = finetune("new", lr=1e-12, epochs=1)
    assert [row["step"] for row in val_rows(new)] == [0, 3] and new.pointer(layout.BEST) == 3
    kept = finetune("kept", weights=str(first.path), model=None, lr=1e-12, epochs=1, freeze_bn=True)
    assert kept.pointer(layout.BEST) == 0 and kept.status["best_step"] == 0
    assert kept.status["best_value"] == val_rows(kept)[0]["accuracy"]


def test_ties_go_to_the_earlier_step(finetune: FINETUNE) -> None:
    run = finetune(lr=1e-12, freeze_bn=True, epochs=3)
    assert len({row["accuracy"] for row in val_rows(run)}) == 1
    assert run.pointer(layout.BEST) == 3  # the first that may be best with a new head


@pytest.mark.parametrize("select_by", ["accuracy", "loss", "f1", "balanced_accuracy", "ece"])
def test_the_best_is_the_best_by_the_metric_asked_for(finetune: FINETUNE, select_by: str) -> None:
    run = finetune(select_by=select_by, epochs=4, seed=1)
    rows = val_rows(run)[1:]
    choose = min if select_by in ("loss", "ece") else max
    best = choose(rows, key=lambda row: row[select_by])
    assert run.status["best_value"] == best[select_by] and run.pointer(layout.BEST) == best["step"]
    assert (run.checkpoint(best["step"]) / layout.MODEL).is_file()


def test_early_stopping_counts_validations_without_a_new_best(finetune: FINETUNE) -> None:
    run = finetune(lr=1e-12, freeze_bn=True, epochs=9, patience=2)
    assert [row["step"] for row in val_rows(run)] == [0, 3, 6, 9]
    assert run.status["state"] == "finished" and run.status["step"] == 9
    assert run.status["stop_reason"] == "no new best in 2 validations"


def test_a_gain_below_min_delta_is_no_new_best(finetune: FINETUNE) -> None:
    run = finetune(epochs=4, select_by="loss", min_delta=50, patience=2)
    assert run.pointer(layout.BEST) == 3 and run.status["step"] == 9


def test_top5_among_three_classes_is_refused(finetune: FINETUNE) -> None:
    with pytest.raises(UserError, match="--select-by top5 cannot choose among 3 classes"):
        finetune(select_by="top5")


# ---- pace


def test_validation_between_epochs_and_at_the_end(finetune: FINETUNE) -> None:
    run = finetune(eval_every="2steps", max_steps=5, save_every="100epochs")
    assert [row["step"] for row in val_rows(run)] == [0, 2, 4, 5]
    assert run.status["step"] == 5 and run.pointer(layout.LAST) == 5
    assert [row["step"] for row in trained_rows(run, "epoch")] == [3]


def test_one_window_larger_than_the_data_is_one_step_per_epoch(finetune: FINETUNE) -> None:
    batch, window = finetune("batch", batch_size=500), finetune("window", accumulate=50)
    assert batch.status["step"] == window.status["step"] == 2
    assert batch.resolved["pace"]["steps_per_epoch"] == 1


def test_a_window_with_no_weight_at_all_leaves_a_row_without_a_loss(finetune: FINETUNE) -> None:
    run = finetune(batch_size=2, class_weights="ant=0,bee=0", label_smoothing=0.1, epochs=1, freeze_bn=True)
    losses = [row["loss"] for row in trained_rows(run)]
    assert None in losses and any(loss is not None for loss in losses)
    assert run.status["state"] == "finished"
    weights = load_file(run.checkpoint(run.status["step"]) / layout.MODEL)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_time_budget_shortens_the_run_and_stops_it_hard(finetune: FINETUNE) -> None:
    run = finetune(epochs=2000, time_budget="1s")
    total = run.resolved["pace"]["total_steps"]
    assert 1 <= total < 6000 and run.resolved["pace"]["max_seconds"] == 1.0
    assert run.resolved["probe"]["seconds_per_step"] > 0
    assert run.status["state"] == "finished" and run.status["step"] <= total
    late = finetune("late", epochs=1, time_budget=".01s")
    assert late.status["step"] == 1
    assert late.status["stop_reason"] in (None, "the time budget is used up")


def test_the_hard_stop_is_recorded(settings: SETTINGS, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that was far too hopeful: the clock ends the run."""
    import warmstart.engine.prepare as prepare
    from warmstart.engine.probe import Probe

    monkeypatch.setattr(prepare, "probe", lambda job: Probe(1e-9, 1e-9, 0.0, None))
    run = Run(train.finetune(settings(epochs=500, time_budget=".5s")))
    assert run.resolved["pace"]["total_steps"] == 1500
    assert run.status["step"] < 1500 and run.status["state"] == "finished"
    assert run.status["stop_reason"] == "the time budget is used up"
    assert run.pointer(layout.LAST) == run.status["step"]
    with pytest.raises(UserError, match="is finished: nothing is left to resume"):
        train.resume(str(run.path), {})


# ---- what goes wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(
    finetune: FINETUNE, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        finetune(
            optimizer="sgd",
            lr=1e6,
            clip="none",
            epochs=5,
            log_every="2steps",
            eval_every="4epochs",
            save_every="4epochs",
            rescue=0,
        )
    assert str(error.value) == (
        "the gradient is not finite in step 3\nExpected: finite numbers\n"
        "Fix: lower --lr (now 1e+06), add --warmup 2epochs or a smaller --clip; "
        f"the last checkpoint in {tmp_path / 'run'} is from before that"
    )
    run = Run(tmp_path / "run")
    assert run.status["state"] == "failed" and run.status["step"] == 3
    assert run.checkpoint_steps() == [0]
    json.loads(
        (tmp_path / "run" / layout.STATUS).read_text(), parse_constant=lambda _: pytest.fail("no JSON")
    )


def test_without_validation_images_the_last_checkpoint_counts(
    finetune: FINETUNE, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        run = finetune(val_ratio=0, train_ratio=1)
    assert (
        "there are no validation images: the last checkpoint is kept, and nothing is selected" in caplog.text
    )
    assert run.pointer(layout.BEST) is None and run.pointer(layout.LAST) == run.status["step"]
    assert {row["split"] for row in run.evals.rows} == {"train"}


@pytest.mark.parametrize(
    ("given", "setting"), [({"patience": 3}, "--patience"), ({"scheduler": "plateau"}, "--scheduler plateau")]
)
def test_what_needs_validation_images_is_refused_without(
    finetune: FINETUNE, given: dict[str, Any], setting: str
) -> None:
    with pytest.raises(UserError, match=f"{setting} needs validation images, and there are none"):
        finetune(val_ratio=0, train_ratio=1, **given)


def test_batches_of_one_image_are_refused_where_norms_are_live(finetune: FINETUNE) -> None:
    with pytest.raises(UserError, match="BatchNorm layers cannot learn from batches of one image"):
        finetune(batch_size=1)
    assert finetune("held", batch_size=1, freeze_bn=True, max_steps=2).status["state"] == "finished"


def test_corrupt_images_are_listed_and_resume_looks_no_second_time(
    settings: SETTINGS, data: Path, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    root = tmp_path / "broken"
    for source in sorted(data.rglob("*.png")):
        target = root / source.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    torn = root / "bee" / "03.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(UserError, match=r"1 of 42 images \(2.4%\) are unreadable: bee/03.png"):
        train.finetune(settings("strict", data=str(root)))
    straight = Run(train.finetune(settings("straight", data=str(root), max_corrupt=0.1)))
    rows = list(csv.reader((straight.path / layout.QUARANTINE).read_text().splitlines()))
    assert rows[0] == ["id", "reason"] and [row[0] for row in rows[1:]] == ["bee/03.png"]
    interrupt_at(2)
    with pytest.raises(UserError, match="interrupted at step 2 of 6"):
        train.finetune(settings("run", data=str(root), max_corrupt=0.1))
    torn.write_bytes(whole)  # mended meanwhile: the run that was started goes on without it
    resumed = Run(train.resume(str(tmp_path / "run"), {}))
    assert (resumed.checkpoint(6) / layout.MODEL).read_bytes() == (
        straight.checkpoint(6) / layout.MODEL
    ).read_bytes()


def test_images_lost_on_the_way_count_across_a_resume(
    settings: SETTINGS,
    data: Path,
    tmp_path: Path,
    interrupt_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of 24 may be lost. The first is met in step 4, and mended; the second in step 6, after a resume."""
    from warmstart.engine.measure import train_subset
    from warmstart.engine.state import TrainState

    root = Path(shutil.copytree(data, tmp_path / "data"))
    given = {"data": str(root), "cache": "off", "max_corrupt": 0.05}
    job = train.dry_run(settings("unused", **given))[0].job
    samples = job.dataset.splits["train"]
    measured = train_subset(samples, 6, job.config.train.seed).ids
    shown = [[samples.ids[place] for place in np.concatenate(window)] for window in job.windows(1)]
    first, second = (next(name for name in shown[step] if name not in measured) for step in (0, 2))

    def tear(name: str) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[:60] + bytes(len(content) - 60))

    count, whole = TrainState.advance, (root / first).read_bytes()

    def advance(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        if state.step in (3, 5):
            tear(first if state.step == 3 else second)

    monkeypatch.setattr(TrainState, "advance", advance)
    interrupt_at(4)
    with pytest.raises(UserError, match="interrupted at step 4"):
        train.finetune(settings("run", **given))
    assert list(load_checkpoint(tmp_path / "run")[1].state.unreadable) == [first]
    (root / first).write_bytes(whole)
    with pytest.raises(UserError, match="2 training images can no longer be read") as error:
        train.resume(str(tmp_path / "run"), {})
    assert first in str(error.value) and second in str(error.value)


def test_a_run_that_has_lost_an_image_comes_to_its_results(
    settings: SETTINGS, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in the second epoch, it is one of the training images that a validation measures the gap on."""
    from warmstart.engine.measure import train_subset
    from warmstart.engine.state import TrainState

    root = Path(shutil.copytree(data, tmp_path / "data"))
    given = {"data": str(root), "cache": "off", "max_corrupt": 0.05}
    job = train.dry_run(settings("unused", **given))[0].job
    samples = job.dataset.splits["train"]
    size = (len(job.dataset.splits["val"]) + 1) // 2
    measured = train_subset(samples, size, job.config.train.seed).ids
    later = np.concatenate([*chain.from_iterable(job.windows(1)[1:])])
    lost = next(samples.ids[place] for place in later if samples.ids[place] in measured)
    count = TrainState.advance

    def advance(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        if state.step == 4:
            (root / lost).write_bytes(bytes((root / lost).stat().st_size))

    monkeypatch.setattr(TrainState, "advance", advance)
    run = Run(train.finetune(settings("run", **given)))
    numbers = [row["num_samples"] for row in run.evals.rows if row["split"] == "train"]
    assert numbers == [size, size, size - 1] and list(run.status["unreadable"]) == [lost]
    gains, (result,) = measure_gains(run.path, torch.device("cpu"), 0)
    assert gains and result.num_samples == len(job.dataset.splits[result.split])


def test_a_parents_mixup_is_dropped_for_masks(settings: SETTINGS) -> None:
    """What it was trained with is taken over, but ids of masks cannot be blended; cutmix can."""
    job = train.dry_run(settings("unused"))[0].job
    with_masks = replace(job.dataset, mask_rules=MaskRules())
    mixup, both = Augment(mixup=0.4), Augment(mixup=0.4, cutmix=0.5)
    assert prepare._mixing(job.config, mixup, job.dataset) is not None
    assert prepare._mixing(job.config, mixup, with_masks) is None
    left = prepare._mixing(job.config, both, with_masks)
    assert left is not None and (left.mixup, left.cutmix) == (0.0, 0.5)


def test_a_group_without_gradient_is_named(finetune: FINETUNE, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        finetune("fine", epochs=1)
    assert "no gradient" not in caplog.text
    from warmstart.engine.gradients import GradientWatch

    silent, loud = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD(
        [
            {"params": [silent], "names": ("stem.weight",), "block": "stem"},
            {"params": [loud], "names": ("head.weight",), "block": "head"},
        ],
        lr=0.1,
    )
    watch = GradientWatch(optimizer, torch.nn.Identity())
    silent.grad, loud.grad = torch.zeros(2), torch.ones(2)
    watch.look()
    loud.grad = None  # one step without is no silence
    watch.look()
    assert watch.silent_blocks() == ["stem"]
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        watch.report()
    assert "block stem is planned to train but part of it had no gradient in 2 steps" in caplog.text


def test_colour_images_make_no_difference_to_a_grey_model(finetune: FINETUNE, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("day", "night"):
        folder = tmp_path / "colour" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    run = finetune(data=str(tmp_path / "colour"), batch_size=4, epochs=1)
    assert run.status["state"] == "finished" and run.resolved["data"]["num_channels"] == 3


@pytest.mark.parametrize(
    ("lrs", "rate_tags"),
    [("none", {"learning_rate"}), ("head=0.1", {f"learning_rate/group_{n}" for n in range(10)})],
)
def test_tensorboard_has_the_documents_tags(finetune: FINETUNE, lrs: str, rate_tags: set[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finetune(tensorboard=True, lrs=lrs)
    events = EventAccumulator(str(run.path / "tb")).Reload()
    watched = {"fisher_ratio", "most_confident_mistake", "likely_mislabelled"}
    watched |= {f"separation/{name}" for name in ("ant", "bee", "cat")}
    gaps = {"gap/loss", "gap/accuracy"}
    expected = {"loss", "accuracy", "val_loss", "train_loss_avg"} | gaps | watched | rate_tags
    assert set(events.Tags()["scalars"]) == expected
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == {row["step"]: pytest.approx(row["loss"], rel=1e-6) for row in trained_rows(run)}
