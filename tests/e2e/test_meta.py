"""`warmstart meta` as people call it, and `finetune` from what it made, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fresh
from warmstart import api
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.run.reader import Run

SMALL = "--model builtin:fashion_cnn --weights none --image-size 16 --epochs 1 --meta.way 2 --meta.query 3"
SMALL += " --meta.episodes 4 --meta.val-episodes 4 --meta.test-episodes 6 --no-tensorboard --no-pictures --workers 0"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six classes of five pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in range(6):
        (tmp_path / "photos" / f"c{label}").mkdir(parents=True)
        for number in range(5):
            pixels = rng.normal(40 * label, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"c{label}" / f"{number}.png")
    return "photos"


def test_the_command_learns_a_start_that_another_process_tunes(
    photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["meta", "--data", photos, *SMALL.split(), "--output-dir", "start", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"] == "test" and told["gains"][0]["num_samples"] == 6
    assert Run(Path("start")).config["meta"]["method"] == "protonet"
    tuning = "--epochs 1 --batch-size 4 --no-tensorboard --no-pictures --workers 0 --output-dir tuned --json"
    done = fresh.run("finetune", "--weights", "start", "--data", photos, *tuning.split(), module="warmstart")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "tuned"
    assert Run(Path("tuned")).resolved["model"]["classes"] == [f"c{n}" for n in range(6)]
    assert main(["evaluate", "start"]) == 2 and "finetune --weights start" in capsys.readouterr().err
    assert main(["evaluate", "tuned"]) == 0


def test_a_dry_run_says_what_an_episode_is_and_writes_nothing(
    photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["meta", "--data", photos, *SMALL.split(), "--meta", "maml", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "all images are one pool, divided by classes: train 2" in told and "inner steps" in told
    assert not Path("runs").exists()


def test_what_the_data_cannot_give_is_refused_before_any_training(photos: str) -> None:
    for settings, message in (
        ({"meta.way": 3}, "an episode has 3 classes"),
        ({"meta.shot": 9}, "an episode has 12 different images"),
        ({"meta.test_classes": "c9,c1"}, "no class is named 'c9'"),
    ):
        given = {"weights": "none", "meta.way": 2, "meta.query": 3, **settings}
        with pytest.raises(UserError, match=message):
            api.meta("builtin:fashion_cnn", photos, **given)
    Path("plain.yaml").write_text("train: {epochs: 1}\n", encoding="utf-8")
    with pytest.raises(UserError, match="name no method"):
        api.meta("builtin:fashion_cnn", photos, weights="none", config="plain.yaml")
    assert not Path("runs").exists()
