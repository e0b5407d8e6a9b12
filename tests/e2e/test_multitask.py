"""`warmstart multitask` from the command line: trained here, evaluated and asked in other processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fresh
import warmstart
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("more") / "light"
    rng = np.random.default_rng(1)
    for label, level in (("dark", 60), ("bright", 190)):
        (root / label).mkdir(parents=True)
        for number in range(14):
            noisy = rng.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(light: Path, overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first process prints."""
    run = tmp_path_factory.mktemp("runs") / "both"
    flags = {"data": overlapping, "tasks": f"light={light}", "tasks.first": "animals", "output-dir": run}
    flags |= {
        "model": "builtin:fashion_cnn",
        "weights": "none",
        "image-size": 16,
        "batch-size": 8,
        "lr": 0.01,
    }
    flags |= {"train-ratio": 0.6, "val-ratio": 0.25, "epochs": 3, "device": "cpu"}
    return command(
        "multitask",
        "--no-pictures",
        *(part for name, value in flags.items() for part in (f"--{name}", value)),
    )


def command(*words: object) -> dict[str, Any]:
    done = fresh.run(*map(str, words), "--json", module="warmstart")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_another_process_measures_each_task_as_the_run_did(trained: dict[str, Any]) -> None:
    run = Run(Path(trained["run"]))
    best = run.pointer(layout.BEST)
    for name in ("animals", "light"):
        found = command("evaluate", run.path, "--task", name, "--split", "val", "--device", "cpu")
        (row,) = [
            row
            for row in run.evals.rows
            if (row["step"], row["split"], row.get("task"), row.get("kind")) == (best, "val", name, None)
        ]
        assert found["metrics"]["accuracy"] == row["accuracy"]
        assert found["metrics"]["loss"] == row["loss"]
        assert Path(found["folder"]).name == f"{name}.val@{best}"
    assert {(gain["split"], gain["task"]) for gain in trained["gains"]} == {
        (split, name) for split in ("val", "test") for name in ("animals", "light")
    }


def test_each_task_answers_with_its_own_classes(trained: dict[str, Any], light: Path) -> None:
    found = command("predict", trained["run"], light / "dark", "--task", "light", "--device", "cpu")
    assert {row["class"] for row in found["predictions"]} <= {"dark", "bright"}
    file = next(Path(trained["run"]).rglob(layout.MODEL))
    found = command("predict", file, light / "dark", "--task", "animals", "--device", "cpu")
    assert {row["class"] for row in found["predictions"]} <= {"ant", "bee", "cat"}


def test_show_tells_of_every_task(trained: dict[str, Any]) -> None:
    text = warmstart.show(trained["run"]).text()
    for part in ("task   animals: labels, 3 classes", "light.val", "0.5 x accuracy of light", "head:light"):
        assert part in text, part


@pytest.mark.parametrize("verb", ["evaluate", "predict", "blend", "continue_run"])
def test_what_needs_one_task_says_so(trained: dict[str, Any], light: Path, verb: str, tmp_path: Path) -> None:
    calls: dict[str, Any] = {
        "evaluate": lambda run: warmstart.evaluate(run, device="cpu"),
        "predict": lambda run: warmstart.predict(run, [str(light)], task="lihgt", device="cpu"),
        "blend": lambda run: warmstart.blend([run], device="cpu"),
        "continue_run": lambda run: warmstart.continue_run(run, output_dir=str(tmp_path / "x"), epochs=9),
    }
    told = {
        "evaluate": "--task animals",
        "predict": "Did you mean 'light'",
        "blend": "several",
        "continue_run": "several",
    }
    with pytest.raises(UserError, match=told[verb]):
        calls[verb](trained["run"])


def test_one_task_alone_goes_on_from_the_shared_weights(
    trained: dict[str, Any], light: Path, tmp_path: Path
) -> None:
    """`finetune` takes the head whose classes are those of the data."""
    given = {
        "epochs": 1,
        "image_size": 16,
        "device": "cpu",
        "output_dir": str(tmp_path / "alone"),
        "tensorboard": False,
        "pictures": False,
    }
    result = warmstart.finetune(trained["run"], str(light), **given)
    assert Run(Path(result.run)).resolved["model"]["head"]["kind"] == "kept"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="is of one task"):
        warmstart.evaluate(result.run, task="light", device="cpu")  # type: ignore[union-attr]
