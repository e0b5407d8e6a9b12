"""Runs on episodes: every method resumed to the bit, measured, a start for finetune; and a gain that could fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart import api
from warmstart.engine import train
from warmstart.engine.prepare import prepare
from warmstart.engine.state import TrainState
from warmstart.errors import Interrupted, UserError
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.verify.differences import first_difference

SETTINGS = Callable[..., Any]
METHODS = {
    "protonet": {"meta": "protonet"},
    "maml": {"meta": "maml"},
    "second order": {"meta": "maml", "meta.second_order": True},
    "anil": {"meta": "anil", "dropout": 0.3},
    "adapters": {"meta": "maml", "lora.rank": 2, "lora.targets": "fc1"},
    "reptile": {"meta": "reptile", "optimizer": "sgd", "lr": 0.5, "ema": 0.9},
}
EPISODES = {
    "meta.way": 2,
    "meta.query": 3,
    "meta.episodes": 6,
    "meta.val_episodes": 10,
    "meta.test_episodes": 20,
    "meta.inner_steps": 2,
    "accumulate": 2,
}


def write_classes(root: Path, num_classes: int, num: int = 6, noise: float = 40) -> Path:
    """Class folders of grey pictures, 16 px: a class is a pattern of 4 x 4 fields on the left, noise on the right."""
    rng = np.random.default_rng(0)
    for label in range(num_classes):
        (root / f"class{label}").mkdir(parents=True)
        pattern = np.kron(rng.integers(90, 160, (4, 2)), np.ones((4, 4)))
        for number in range(num):
            pixels = np.concatenate([pattern, np.kron(rng.integers(0, 256, (4, 2)), np.ones((4, 4)))], axis=1)
            pixels = (pixels + rng.normal(0, noise, (16, 16))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classes(tmp_path_factory.mktemp("classes"), 7))


def given(classes: str, **more: Any) -> dict[str, Any]:
    return {"data": classes, **EPISODES, "meta": "protonet", **more}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    method: str, settings: SETTINGS, classes: str, interrupt_at: Callable[..., None]
) -> None:
    values = given(classes, **METHODS[method])
    straight = Run(train.finetune(settings("straight", **values)))
    interrupt_at(2, 4)
    with pytest.raises(Interrupted):
        train.finetune(settings("resumed", **values))
    path = str(Path(straight.path).parent / "resumed")
    with pytest.raises(Interrupted):
        train.resume(path, {})
    assert first_difference(straight, Run(train.resume(path, {}))) is None
    weights = load_file(straight.checkpoint(6) / layout.MODEL)
    start = prepare(settings("start", **values).config, {}, Path("start")).job
    moved = [
        name for name, value in start.built.module.named_parameters() if not torch.equal(value, weights[name])
    ]
    head = {name for name in weights if name.startswith("fc2")}
    assert bool(head & set(moved)) == (method != "protonet")
    names = [name for name, _ in start.built.module.named_parameters()]
    expected = [name for name in names if "lora" in name or name in head] if method == "adapters" else names
    assert head | set(moved) == head | set(expected)


def test_a_run_measures_held_out_classes_and_is_a_start_for_others(
    settings: SETTINGS, classes: str, tmp_path: Path
) -> None:
    values = settings("run", **given(classes, **{"meta.val_classes": "class1,class4"}))
    run = Run(train.finetune(values))
    found = run.resolved["episodes"]["classes"]
    assert found["val"] == ["class1", "class4"] and len(found["train"]) == 3
    rows = {(row["split"], row["step"]): row for row in run.evals.rows}
    best = run.pointer(layout.BEST)
    assert {step for split, step in rows if split == "val"} == {0, 3, 6}
    assert {step for split, step in rows if split == "test"} == {0, best}
    # The head takes no part, so that a new one is no reason to pass the start over.
    assert rows["val", best]["accuracy"] == max(rows["val", step]["accuracy"] for step in (0, 3, 6))
    assert rows["test", best]["episodes"] == 20 and rows["val", best]["episodes"] == 10
    row = rows["test", best]
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]

    result = api.as_json(api.resume(str(run.path)))  # what came after the training
    (gain,) = result["gains"]
    assert gain["split"] == "test" and result["metrics"]["accuracy"] == row["accuracy"]
    assert gain["low"] <= gain["difference"] <= gain["high"] and "20 episodes" in gain["change"]
    assert "episodes" in api.show(str(run.path)).text()
    for refused in (api.evaluate, lambda path: api.predict(path, [classes])):
        with pytest.raises(UserError, match="learned from episodes"):
            refused(str(run.path))

    tuned = settings(
        "tuned", weights=str(run.path), model=None, data=classes, train_ratio=0.6, val_ratio=0.4, batch_size=4
    )
    job = prepare(tuned.config, {}, tmp_path / "tuned").job
    assert job.built.classes == tuple(f"class{n}" for n in range(7)) and job.built.head_change.kind == "new"
    learned = load_file(run.checkpoint(best) / layout.MODEL)
    assert torch.equal(job.built.module.state_dict()["conv1.weight"], learned["conv1.weight"])
    train.finetune(tuned)


def test_what_a_run_of_episodes_has_learned_from_is_known_to_its_children(
    settings: SETTINGS, classes: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(train.finetune(settings("run", **given(classes))))
    start = {"model": None, "weights": str(run.path)}
    child = Run(train.finetune(settings("child", **given(classes, seed=5, **start))))
    assert child.resolved["episodes"] == run.resolved["episodes"], "the parent's seed holds classes out"
    assert "training images of" not in caplog.text
    other = {name: value for name, value in given(classes, **start).items() if "meta" not in name}
    train.finetune(settings("tuned", **other))
    assert "images have the ids of training images of" in caplog.text
    assert Run(run.path.parent / "tuned").resolved["data"]["sizes"]["val"] < 10, (
        "divided by images, not by classes"
    )


def test_mixed_images_are_not_taken_over_into_episodes(settings: SETTINGS, classes: str) -> None:
    mixed = Run(train.finetune(settings("mixed", data=classes, mixup=0.4, cutmix=0.5)))
    loaded = settings("run", **given(classes, model=None, weights=str(mixed.path)))
    assert prepare(loaded.config, {}, mixed.path.parent / "run").job.train_view.mixing is None


def test_anil_needs_a_head_that_trains(settings: SETTINGS, classes: str) -> None:
    with pytest.raises(UserError, match="the head is frozen"):
        train.finetune(settings("run", **given(classes, meta="anil", freeze="head")))


def test_continued_and_started_again_the_run_keeps_its_classes(settings: SETTINGS, classes: str) -> None:
    run = Run(train.finetune(settings("run", **given(classes))))
    child = api.continue_run(str(run.path), epochs=3, output_dir=str(run.path.parent / "child"))
    child = Run(Path(child.run))
    assert child.resolved["episodes"] == run.resolved["episodes"]
    assert max(row["step"] for row in child.evals.rows) == 9
    again = Run(train.finetune(settings("again", **given(classes))))
    assert first_difference(run, again) is None


def test_batchnorm_is_held_with_weights_of_a_training_and_takes_the_episodes_with_random_ones(
    settings: SETTINGS, classes: str, tmp_path: Path
) -> None:
    values = given(classes, model="timm:resnet10t", image_size=32, **{"meta": "maml", "meta.episodes": 2})
    values |= {"epochs": 1, "meta.test_episodes": 2, "meta.val_episodes": 2}
    random = Run(train.finetune(settings("random", **values)))
    assert {row["norms"] for row in random.plan["rows"]} == {"train", "-"}
    assert any("transductive" in remark for remark in random.plan["remarks"])
    weights = load_file(random.checkpoint(1) / layout.MODEL)
    assert float(weights["conv1.1.running_mean"].abs().sum()) > 0

    torch.save(weights, tmp_path / "weights.pt")
    held = Run(train.finetune(settings("held", **{**values, "weights": str(tmp_path / "weights.pt")})))
    assert {row["norms"] for row in held.plan["rows"]} == {"held", "-"}
    tuned = load_file(held.checkpoint(1) / layout.MODEL)
    assert torch.equal(tuned["conv1.1.running_mean"], weights["conv1.1.running_mean"])
    assert not torch.equal(tuned["bn1.weight"], weights["bn1.weight"])
    assert any("are held" in remark for remark in held.plan["remarks"])


@pytest.mark.parametrize("freeze", ["conv*", "conv1"])
def test_a_frozen_prefix_is_computed_once_for_all_episodes(
    freeze: str, settings: SETTINGS, classes: str
) -> None:
    values = given(classes, meta="anil", freeze=freeze, augment="none", epochs=3)
    kept = Run(train.finetune(settings("kept", feature_cache="on", **values)))
    plain = Run(train.finetune(settings("plain", feature_cache="off", **values)))
    assert kept.resolved["features"]["cut"] is not None
    for mine, theirs in zip(kept.evals.rows, plain.evals.rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_dry_run_and_a_time_budget_know_episodes(settings: SETTINGS, classes: str) -> None:
    _, measured = train.dry_run(settings("dry", **given(classes, meta="reptile")))
    assert measured.seconds_per_step > 0 and measured.seconds_per_eval_image > 0
    run = Run(train.finetune(settings("short", **given(classes, time_budget="60s"))))
    assert run.status["state"] == "finished"


def test_an_episode_with_an_image_that_cannot_be_read_is_left_out(
    settings: SETTINGS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_classes(tmp_path / "data", 6)
    values = settings(
        "run", **given(str(root), cache="off", max_corrupt=0.5, **{"meta.episodes": 12, "epochs": 1})
    )
    job = prepare(values.config, {}, tmp_path / "looked").job
    lost = job.dataset.splits["train"].ids[0]
    count = TrainState.advance

    def losing(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        (root / lost).unlink(missing_ok=True)

    monkeypatch.setattr(TrainState, "advance", losing)
    run = Run(train.finetune(values))
    assert list(run.status["unreadable"]) == [lost]
    assert "an episode is left out" in (run.path / layout.LOG).read_text(encoding="utf-8")


def test_protonet_learns_what_tells_classes_apart_that_it_never_saw(
    settings: SETTINGS, tmp_path: Path
) -> None:
    """The right half of each picture is strong noise, which the start's embedding does not know to leave aside."""
    root = write_classes(tmp_path / "data", 24, num=8, noise=10)
    values = given(str(root), epochs=5, lr=3e-3, augment="none")
    values |= {"meta.way": 5, "meta.episodes": 30, "meta.test_episodes": 200, "accumulate": 1}
    run = train.finetune(settings("run", **values))
    from warmstart.analysis.episodes import episode_gains

    (gain,) = episode_gains(run)
    assert gain.low > 0.05, gain.change
