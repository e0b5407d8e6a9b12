"""What lies in a run, and what other programs would have called it, is a step of that run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from warmstart.errors import UserError
from warmstart.inference.reference import at_step, resolve_weights
from warmstart.run import layout, reader


@pytest.fixture(scope="module")
def run(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of 4 steps: which are kept does not depend on which was the best."""
    folder = tmp_path_factory.mktemp("reference") / "full"
    settings: dict[str, Any] = {
        "weights": "none",
        "image_size": "16",
        "batch_size": 8,
        "epochs": 3,
        "lr": 0.01,
    }
    more: dict[str, Any] = {
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
        "keep_checkpoints": 2,
    }
    ws.finetune("builtin:fashion_cnn", str(overlapping), output_dir=str(folder), **settings, **more)
    return folder


def steps(run: Path) -> tuple[int, list[int]]:
    return reader.Run(run).resolved["pace"]["steps_per_epoch"], reader.Run(run).checkpoint_steps()


def test_the_last_epochs_are_there_whether_or_not_they_were_the_best(run: Path) -> None:
    """In the document's program checkpoint-epoch-20 exists only if epoch 20 was a best."""
    per_epoch, kept = steps(run)
    for epoch in (2, 3):
        assert epoch * per_epoch in kept
        assert at_step(f"{run}/checkpoint-epoch-{epoch}") == f"{run}@{epoch * per_epoch}"
        assert at_step(f"{run}/checkpoint-{epoch * per_epoch}") == f"{run}@{epoch * per_epoch}"


def test_folders_and_files_of_a_run_are_its_steps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = steps(run)[1][-1]
    folder = run / "checkpoints" / layout.checkpoint_name(step)
    for name in (folder, f"{folder}/", folder / layout.MODEL):
        assert at_step(str(name)) == f"{run}@{step}"
        found = resolve_weights(str(name))
        assert found.run is not None and (found.run.path, found.step) == (run, step)
    monkeypatch.chdir(run / "checkpoints")
    found = resolve_weights(layout.checkpoint_name(step))
    assert found.run is not None and found.run.path.resolve() == run.resolve() and found.step == step


def test_an_epoch_that_is_gone_names_those_that_are_kept(run: Path) -> None:
    per_epoch, kept = steps(run)
    with pytest.raises(UserError) as caught:
        resolve_weights(f"{run}/checkpoint-epoch-7")
    told = str(caught.value)
    assert "keeps no checkpoint of epoch 7" in told and "--keep-checkpoints" in told
    assert f"3 (step {3 * per_epoch}" in told and "the best" in told
    with pytest.raises(UserError, match=f"one of the steps kept: .*{kept[-1]}"):
        resolve_weights(f"{run}/checkpoint-99")


def test_best_and_last(run: Path) -> None:
    for name in ("best", "last"):
        found = resolve_weights(f"{run}/checkpoint-{name}")
        assert found.step == reader.Run(run).pointer(name.upper())


def test_anything_else_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    for name in (
        f"{tmp_path}/checkpoint-5",
        f"{tmp_path}/absent/checkpoint-5",
        f"{run}@best",
        str(run),
        "a*.pt",
    ):
        assert at_step(name) == name


def test_a_run_that_was_not_trained_has_no_epochs(run: Path, tmp_path: Path) -> None:
    blend = Path(shutil.copytree(run, tmp_path / "blend"))
    resolved = json.loads((blend / layout.RESOLVED).read_text())
    del resolved["pace"]
    (blend / layout.RESOLVED).write_text(json.dumps(resolved))
    with pytest.raises(UserError, match="was not trained"):
        at_step(f"{blend}/checkpoint-epoch-1")


def test_a_child_goes_on_from_the_epoch_that_is_named(run: Path, tmp_path: Path) -> None:
    """Its state, not that of the last one."""
    per_epoch, _ = steps(run)
    ws.continue_run(
        f"{run}/checkpoint-epoch-2",
        epochs=4,
        output_dir=str(tmp_path / "child"),
        keep="all",
        tensorboard=False,
        pictures=False,
    )
    child = reader.Run(tmp_path / "child")
    assert child.resolved["pace"]["first_step"] == 2 * per_epoch
