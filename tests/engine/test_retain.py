"""Runs with other data sets: measured, mixed in, held to the start, resumed to the bit, continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart import api
from warmstart.analysis.gain import measure_gains
from warmstart.data import counters
from warmstart.data.batches import evaluation_batches
from warmstart.data.mixture import balanced_sample
from warmstart.engine import probe, train
from warmstart.engine.distributed import SOLO
from warmstart.engine.lessons.lessons import Lessons
from warmstart.engine.lessons.start import Start, fisher_information, open_start, start_of
from warmstart.engine.prepare import prepare
from warmstart.errors import Interrupted, UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import predict_outputs
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]
REMEDIES = {
    "mix": {"mix": "A=.5:1epochs,A=.25"},
    "replay": {"retain.replay": 0.25, "retain.images": 6},
    "l2sp": {"retain.l2sp": 0.5},
    "ewc": {"retain.ewc": 50.0, "retain.ewc_images": 6},
    "lwf": {"retain.lwf": 1.0},
}


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A: brighter pictures of another size, of the same classes and ids as --data."""
    monkeypatch.chdir(tmp_path)
    return pictures(tmp_path / "A", {"ant": 110, "bee": 150, "cat": 190}, 20)


def pictures(root: Path, classes: dict[str, int], size: int, num: int = 12) -> Path:
    rng = np.random.default_rng(3)
    for name, brightness in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(num):
            pixels = rng.normal(brightness, 30, (size, size)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def knows_a(other: Path, finetune: FINETUNE) -> Run:
    return finetune("on_a", data=str(other))


def rows(run: Run, split: str) -> list[dict[str, Any]]:
    return [row for row in run.evals.rows if row["split"] == split]


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / layout.MODEL)


def tuned(knows_a: Run, finetune: FINETUNE, name: str = "run", **given: Any) -> Run:
    return finetune(name, model=None, weights=f"{knows_a.path}@6", retain="A", **given)


def test_what_is_retained_is_measured_at_every_validation(knows_a: Run, finetune: FINETUNE) -> None:
    run = tuned(knows_a, finetune)
    assert [row["step"] for row in rows(run, "retain")] == [0, 3, 6]
    # What is measured is what the start run never trained on.
    kept = {name for name, split in knows_a.splits.items() if split == run.resolved["retained"]["split"]}
    assert set(Run(run.path).source_splits(0).items()) == set(knows_a.splits.items())
    assert rows(run, "retain")[0]["num_samples"] == len(kept) == run.resolved["retained"]["num_samples"]


def test_measuring_changes_nothing_of_the_training(knows_a: Run, finetune: FINETUNE) -> None:
    measured = tuned(knows_a, finetune, "measured")
    plain = finetune("plain", model=None, weights=f"{knows_a.path}@6")
    assert all(torch.equal(t, weights(plain, 6)[name]) for name, t in weights(measured, 6).items())


def test_kept_features_of_two_data_sets_with_equal_ids_are_not_mixed_up(
    knows_a: Run, finetune: FINETUNE
) -> None:
    given = {"freeze": "conv*", "augment": "none"}
    kept = tuned(knows_a, finetune, "kept", feature_cache="on", **given)
    whole = tuned(knows_a, finetune, "whole", feature_cache="off", **given)
    for split in ("val", "retain"):
        for one, other in zip(rows(kept, split), rows(whole, split), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_changes_the_training_and_is_told(name: str, knows_a: Run, finetune: FINETUNE) -> None:
    run, plain = tuned(knows_a, finetune, **REMEDIES[name]), tuned(knows_a, finetune, "plain")
    assert any(not torch.equal(t, weights(plain, 6)[key]) for key, t in weights(run, 6).items())
    trained = [row for row in run.metrics.rows if row["kind"] == "train"]
    if name in ("l2sp", "ewc", "lwf"):
        assert all(row[name] > 0 for row in trained)
    else:
        places = run.resolved["mixture"]
        assert places["--data"] == ([12, 18] if name == "mix" else [18, 18])
        assert all(sum(numbers) == 24 for numbers in zip(*places.values(), strict=True))


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_resume_is_to_the_bit(
    name: str, frozen: bool, knows_a: Run, settings: SETTINGS, interrupt_at: Callable[..., None]
) -> None:
    given = {"model": None, "weights": f"{knows_a.path}@6", "retain": "A", **REMEDIES[name]}
    given |= {"freeze": "conv*", "feature_cache": "on"} if frozen else {}
    straight = Run(train.finetune(settings("straight", **given)))
    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **given))
    shutil.rmtree(knows_a.path)  # nothing of the start may be needed any more
    stopped = Run(train.resume(str(straight.path.parent / "stopped"), {}))
    assert all(torch.equal(t, weights(straight, 6)[key]) for key, t in weights(stopped, 6).items())
    assert [row["loss"] for row in rows(stopped, "retain")] == [
        row["loss"] for row in rows(straight, "retain")
    ]
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in run.metrics.rows]
        for run in (straight, stopped)
    ]
    assert timeless[0] == [row for row in timeless[1] if row["kind"] != "resume"]


@pytest.mark.parametrize("name", ["mix", "ewc", "lwf"])
def test_more_epochs_are_the_longer_run(name: str, knows_a: Run, finetune: FINETUNE, tmp_path: Path) -> None:
    """A child holds on to what its parent held on to, not to where the parent ended."""
    given = {**REMEDIES[name], "scheduler": "none"}
    long = tuned(knows_a, finetune, "long", **given, epochs=3)
    short = tuned(knows_a, finetune, "short", **given)
    child = api.continue_run(f"{short.path}@6", epochs=3, output_dir=str(tmp_path / "child"))
    found = Run(Path(child.run))
    assert all(torch.equal(t, weights(long, 9)[key]) for key, t in weights(found, 9).items())
    kept = {row[0]: row[1] for row in found.resolved["continued"]["kept"]}
    assert kept.get("start weights") == (None if name == "mix" else "kept")


@pytest.mark.parametrize("name", ["mix", "replay"])
def test_other_images_of_what_is_mixed_in_keep_no_place_in_the_order(
    name: str, knows_a: Run, finetune: FINETUNE, tmp_path: Path
) -> None:
    run = tuned(knows_a, finetune, **REMEDIES[name])
    more = partial(api.continue_run, f"{run.path}@6", epochs=3)
    Image.new("L", (20, 20), 90).save(tmp_path / "A" / "ant" / "01.png")
    with pytest.raises(UserError, match="--keep all keeps the place in the order of the training images"):
        more(output_dir=str(tmp_path / "refused"))
    assert more(keep="optimizer", output_dir=str(tmp_path / "child")).run


def test_other_images_that_are_measured_only_may_change(
    knows_a: Run, finetune: FINETUNE, tmp_path: Path
) -> None:
    run = tuned(knows_a, finetune)
    Image.new("L", (20, 20), 90).save(tmp_path / "A" / "ant" / "01.png")
    child = api.continue_run(f"{run.path}@6", epochs=3, output_dir=str(tmp_path / "child"))
    assert Run(Path(child.run)).status["step"] == 9


def test_fisher_information_is_the_mean_squared_gradient(knows_a: Run, settings: SETTINGS) -> None:
    """The gradient of log p(y | x) by the head's bias is 1[y] - p, whatever the model: reckoned here in numpy."""
    given = {"retain": "A", "retain.ewc": 1, "retain.ewc_images": 5}
    loaded = settings("prepared", model=None, weights=f"{knows_a.path}@6", **given)
    job = prepare(loaded.config, loaded.origins, Path("nowhere")).job
    start = Start.of(job, job.built.module.state_dict())
    found = fisher_information(job, start)
    assert set(found) == {name for name, _ in job.built.module.named_parameters()}
    assert all(torch.equal(found[name], value) for name, value in fisher_information(job, start).items())
    assert job.retained is not None
    samples = job.retained.training.subset(balanced_sample(job.retained.training.targets, 5, 0))
    batches = evaluation_batches(samples, job.built.preprocessing, job.retained.native, 5, 0)
    inputs = InputBuffer(job.built.preprocessing, job.device, False)
    logits = predict_outputs(job.built.module, batches, inputs).astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    uniform = [counters.generator(0, 0, counters.FISHER, int(key)).random(3)[0] for key in samples.keys]
    drawn = [min(int(np.searchsorted(np.cumsum(row), u)), 2) for row, u in zip(p, uniform, strict=True)]
    expected = ((np.eye(3)[drawn] - p) ** 2).mean(0)
    np.testing.assert_allclose(found[f"{job.built.head}.bias"].numpy(), expected, rtol=1e-3, atol=1e-9)


def test_a_start_that_is_gone_is_not_made_up(
    knows_a: Run, settings: SETTINGS, interrupt_at: Callable[..., None]
) -> None:
    interrupt_at(4)
    given = {"model": None, "weights": f"{knows_a.path}@6", "retain": "A", "retain.l2sp": 1}
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **given))
    path = knows_a.path.parent / "stopped" / layout.START
    assert start_of(Run(path.parent)) is not None
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="is gone"):
        train.resume(str(path.parent), {})
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match="is damaged"):
        train.resume(str(path.parent), {})


def test_a_head_that_is_new_has_nothing_to_hold_on_to(other: Path, finetune: FINETUNE) -> None:
    for name in ("ewc", "lwf"):
        with pytest.raises(UserError, match=rf"--retain\.{name} holds on to the answers"):
            finetune(f"new-{name}", retain="A", **{f"retain.{name}": 1})
    run = finetune(
        "l2sp", retain="A", **{"retain.l2sp": 1000.0, "weight_decay": 0, "optimizer": "sgd", "lr": 1e-4}
    )
    start = load_file(run.path / layout.START)
    moved = {
        key: float((t - start[f"weights.{key}"]).abs().max())
        for key, t in weights(run, 6).items()
        if key.endswith(("weight", "bias"))
    }
    head = [value for key, value in moved.items() if key.startswith("fc2")]
    assert head and max(head) > 0, "the head is free"


def test_classes_of_another_data_set(
    other: Path, finetune: FINETUNE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path / "D", {"ant": 90, "dog": 200}, 16)
    with pytest.raises(UserError, match="--mix D has other classes than the training: ant, dog"):
        finetune("refused", mix="D=.5")
    with pytest.raises(UserError, match="--retain D has other classes"):
        finetune("refused", retain="D")
    union = finetune("union", mix="D=.5", mix_classes="union")
    assert union.status["state"] == "finished"
    metadata = json.loads((union.path / layout.RESOLVED).read_text())
    assert metadata["data"]["classes"] == ["ant", "bee", "cat"]
    assert (
        len(
            weights(union, 6)[
                next(k for k in weights(union, 6) if k.startswith("fc2") and k.endswith("bias"))
            ]
        )
        == 4
    )
    child = api.continue_run(f"{union.path}@6", epochs=3, output_dir=str(tmp_path / "child"))
    assert Run(Path(child.run)).resolved["model"]["classes"] == ["ant", "bee", "cat", "dog"]
    mapped = finetune("mapped", mix="D=.5", mix_classes="dog=cat")
    assert mapped.status["state"] == "finished"
    with pytest.raises(UserError, match="no class of the other data sets is called 'dig'"):
        finetune("misspelt", mix="D=.5", mix_classes="dog=cat,dig=cat")
    finetune("nothing", mix="A=.5", mix_classes="union")
    assert "--mix-classes union has no effect" in caplog.text


@pytest.mark.parametrize("given", [{}, {"retain.replay": 0.25}])
def test_training_on_what_is_retained_is_told(
    given: dict[str, Any],
    data: Path,
    knows_a: Run,
    finetune: FINETUNE,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = tmp_path / "both"
    shutil.copytree(data, both)
    for file in (tmp_path / "A").glob("*/*.png"):
        shutil.copy(file, both / file.parent.name / f"copy{file.name}")
    tuned(knows_a, finetune, data=str(both), **given)
    assert any("are trained on here" in row.getMessage() for row in caplog.records)


def test_the_scale_of_class_weights_is_none_of_lwf(knows_a: Run, finetune: FINETUNE) -> None:
    given = {"optimizer": "sgd", "lr": 0.001, "dropout": 0, "retain.lwf": 1.0}
    found = [
        [(row["loss"], row["lwf"]) for row in run.metrics.rows if row["kind"] == "train"]
        for run in (
            tuned(knows_a, finetune, "plain", **given),
            tuned(knows_a, finetune, "hundred", class_weights="ant=100,bee=100,cat=100", **given),
        )
    ]
    for plain, hundred in zip(*found, strict=True):
        assert hundred == pytest.approx(plain, rel=1e-3)


def test_the_steps_that_are_measured_before_the_run_have_the_teacher(
    knows_a: Run, settings: SETTINGS, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": None, "weights": f"{knows_a.path}@6", "retain": "A", **REMEDIES["lwf"]}
    loaded = settings("told", **given, unfreeze="0:head,1:all")
    job = prepare(loaded.config, loaded.origins, Path("nowhere"), None, SOLO).job
    real, teachers = probe.train_window, []
    monkeypatch.setattr(
        probe, "train_window", lambda *given: teachers.append(given[5].lessons) or real(*given)
    )
    assert probe.probe(job).seconds_per_step > 0
    assert teachers and all(
        isinstance(teacher, Lessons) and teacher.names == ("lwf",) for teacher in teachers
    )


def test_images_that_data_is_measured_on_are_not_trained_on(
    data: Path, other: Path, finetune: FINETUNE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    with pytest.raises(UserError, match="is the same data set as --data"):
        finetune("same", mix="copy=.5")
    for name in ("ant", "bee", "cat"):
        (copy / name / "00.png").unlink()
    run = finetune("some", mix="copy=.5")
    measured = [
        name for name, split in run.splits.items() if split != "train" and not name.endswith("00.png")
    ]
    (row,) = [
        r for r in caplog.records if "are left out" in r.getMessage() and "val images" in r.getMessage()
    ]
    assert row.levelname == "WARNING" and measured
    assert run.resolved["mixture"]["copy"] == [12, 12]


def test_the_end_says_what_was_forgotten(knows_a: Run, settings: SETTINGS, tmp_path: Path) -> None:
    values = settings("told", model=None, weights=f"{knows_a.path}@6", retain="A", lr=0.05)
    run = Run(train.finetune(values))
    gains, _ = measure_gains(run.path, torch.device("cpu"), 0)
    (kept,) = [gain for gain in gains if gain.split == "retain"]
    start = rows(run, "retain")[0]["accuracy"]
    assert kept.start["accuracy"] == start and kept.num_samples == run.resolved["retained"]["num_samples"]
    assert kept.difference == pytest.approx(kept.best["accuracy"] - start)
    assert kept.low <= kept.difference <= kept.high
    assert "retain" in api.show(str(run.path)).text()


def test_open_start_is_nothing_where_nothing_holds_on(settings: SETTINGS) -> None:
    loaded = settings("plain")
    job = prepare(loaded.config, loaded.origins, Path("nowhere"), None, SOLO).job
    assert open_start(job, is_fresh=True) is None
