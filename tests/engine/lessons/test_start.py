"""What a run holds on to: the same numbers after a resume, in a child, and whatever the parent's state was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart import api
from warmstart.engine import train
from warmstart.engine.lessons.start import Start, start_of
from warmstart.engine.prepare import prepare
from warmstart.errors import Interrupted
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]
EWC = {"retain": "A", "retain.ewc": 50.0, "retain.ewc_images": 6}


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A: brighter pictures of another size, of the same classes as --data."""
    monkeypatch.chdir(tmp_path)
    return pictures(tmp_path / "A", {"ant": 110, "bee": 150, "cat": 190})


def pictures(root: Path, classes: dict[str, int]) -> Path:
    rng = np.random.default_rng(3)
    for name, brightness in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.normal(brightness, 30, (20, 20, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def knows_a(other: Path, finetune: FINETUNE) -> Run:
    return finetune("on_a", data=str(other))


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / layout.MODEL)


def recorded(run: Run) -> Start:
    found = start_of(run)
    assert found is not None
    return found


def check_resumed(settings: SETTINGS, interrupt_at: Callable[..., None], **given: Any) -> None:
    straight = Run(train.finetune(settings("straight", **given)))
    interrupt_at(2)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **given))
    resumed = Run(train.resume(str(straight.path.parent / "stopped"), {}))
    last = max(straight.checkpoint_steps())
    assert all(torch.equal(t, weights(resumed, last)[name]) for name, t in weights(straight, last).items())
    columns = ("kind", "step", "loss", "l2sp", "ewc", "lwf")
    told = [[[row.get(c) for c in columns] for row in run.metrics.rows] for run in (straight, resumed)]
    assert told[0] == [row for row in told[1] if row[0] != "resume"]


def test_a_new_head_is_still_free_after_a_resume(
    other: Path, settings: SETTINGS, interrupt_at: Callable[..., None]
) -> None:
    check_resumed(settings, interrupt_at, retain="A", **{"retain.l2sp": 5.0})


@pytest.mark.parametrize("given", [EWC, {"retain": "A", "retain.lwf": 1.0}])
def test_a_mixed_head_knows_the_same_classes_after_a_resume(
    given: dict[str, Any], knows_a: Run, settings: SETTINGS, interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "D", {"ant": 90, "dog": 200})
    start = {"model": None, "weights": f"{knows_a.path}@6", "data": str(data), "mix_classes": "union"}
    check_resumed(settings, interrupt_at, **start, **given)


def test_a_child_of_a_run_with_a_new_head_is_the_longer_run(
    other: Path, finetune: FINETUNE, tmp_path: Path
) -> None:
    given = {"retain": "A", "retain.l2sp": 5.0, "scheduler": "none"}
    long, short = finetune("long", **given, epochs=3), finetune("short", **given)
    child = api.continue_run(f"{short.path}@6", epochs=3, output_dir=str(tmp_path / "child"))
    found = weights(Run(Path(child.run)), 9)
    assert all(torch.equal(t, found[name]) for name, t in weights(long, 9).items())


def test_lwf_needs_a_start_that_knew_something(other: Path, finetune: FINETUNE, tmp_path: Path) -> None:
    """The parent's start had a new head: its answers mean nothing, so the child holds on to where it begins."""
    parent = finetune("parent", retain="A", **{"retain.l2sp": 5.0})
    child = api.continue_run(
        f"{parent.path}@6", epochs=3, output_dir=str(tmp_path / "child"), **{"retain.lwf": 1.0}
    )
    assert recorded(Run(Path(child.run))).known == ("ant", "bee", "cat")


def test_the_start_is_what_trains_and_not_the_average(
    knows_a: Run, finetune: FINETUNE, tmp_path: Path
) -> None:
    parent = finetune("parent", model=None, weights=f"{knows_a.path}@6", ema=0.9)
    lwf = {"freeze": "conv*", "retain": "A", "retain.lwf": 1.0, "feature_cache": "on", "augment": "none"}
    child = api.continue_run(
        f"{parent.path}@6", epochs=2, keep="optimizer", output_dir=str(tmp_path / "child"), **lwf
    )
    raw = load_file(parent.checkpoint(6) / layout.STATE_TENSORS)
    held = recorded(Run(Path(child.run))).weights
    assert all(torch.equal(tensor, raw[f"raw.{name}"]) for name, tensor in held.items())
    assert any(not torch.equal(tensor, weights(parent, 6)[name]) for name, tensor in held.items())


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [({}, True), ({"retain": "Z"}, False), ({"retain.ewc_images": 3}, False), ({"freeze": "none"}, False)],
)
def test_a_child_has_the_fisher_information_of_its_own_images_and_parameters(
    change: dict[str, Any], is_kept: bool, knows_a: Run, finetune: FINETUNE, tmp_path: Path
) -> None:
    pictures(tmp_path / "Z", {"ant": 10, "bee": 20, "cat": 30})
    parent = finetune("parent", model=None, weights=f"{knows_a.path}@6", freeze="conv1", **EWC)
    child = api.continue_run(
        f"{parent.path}@6", epochs=1, keep="weights", output_dir=str(tmp_path / "child"), **change
    )
    found = Run(Path(child.run))
    old, new = recorded(parent), recorded(found)
    same = old.fisher.keys() == new.fisher.keys() and all(
        torch.equal(tensor, new.fisher[name]) for name, tensor in old.fisher.items()
    )
    assert same == is_kept
    assert all(torch.equal(tensor, new.weights[name]) for name, tensor in old.weights.items())
    told = {row[0]: row[1] for row in found.resolved["continued"]["kept"]}
    assert told["Fisher information"] == ("kept" if is_kept else "new")


def test_features_are_not_kept_where_the_average_has_another_prefix(
    knows_a: Run, finetune: FINETUNE, tmp_path: Path
) -> None:
    parent = finetune("parent", model=None, weights=f"{knows_a.path}@6", ema=0.99, lr=0.02)
    losses = []
    for cache in ("on", "off"):
        child = api.continue_run(
            f"{parent.path}@6",
            epochs=3,
            freeze="conv*",
            feature_cache=cache,
            augment="none",
            output_dir=str(tmp_path / cache),
        )
        run = Run(Path(child.run))
        losses.append([row["loss"] for row in run.evals.rows if row["split"] == "val"])
        if cache == "on":
            assert "averaged weights" in run.resolved["features"]["reason"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_start_of_another_shape_is_not_held_on_to(other: Path, finetune: FINETUNE, tmp_path: Path) -> None:
    given = {"model": "timm:vit_tiny_patch16_224", "image_size": "32", "retain": "A", "limit": 12}
    parent = finetune("parent", **given, epochs=1, **{"retain.l2sp": 0.1})
    last = max(parent.checkpoint_steps())
    child = api.continue_run(
        f"{parent.path}@{last}",
        keep="weights",
        image_size="48",
        epochs=1,
        output_dir=str(tmp_path / "child"),
    )
    (told,) = [row for row in Run(Path(child.run)).resolved["continued"]["kept"] if row[0] == "start weights"]
    assert told[1] == "new" and "other shapes: pos_embed" in told[2]


def test_the_copy_of_the_start_has_no_gradients(settings: SETTINGS) -> None:
    loaded = settings("plain")
    job = prepare(loaded.config, loaded.origins, Path("nowhere")).job
    for parameter in job.built.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module = Start.of(job, job.built.module.state_dict()).model(job.built)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_start_survives_its_file(settings: SETTINGS) -> None:
    loaded = settings("plain")
    job = prepare(loaded.config, loaded.origins, Path("nowhere")).job
    start = replace(Start.of(job, job.built.module.state_dict()), fisher_of={"images": 3})
    again = Start.from_bytes(start.to_bytes())
    assert (again.new, again.known, again.fisher_of) == (start.new, start.known, start.fisher_of)
    assert start.new and not start.known, "its head is new"
    assert again.weights.keys() == start.weights.keys()
