"""`warmstart blend`: a run between two models, chosen by a stated rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fresh
from warmstart import api
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.methods.blend import Point, choose
from warmstart.run.reader import Run


def pictures(root: Path, brightness: dict[str, int], number: int = 14, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, level in brightness.items():
        (root / name).mkdir(parents=True)
        for count in range(number):
            pixels = rng.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{count:02}.png")
    return root


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A start on A, and what was tuned from it on B, where the classes are darker."""
    root = tmp_path_factory.mktemp("blend")
    a = pictures(root / "a", {"ant": 110, "bee": 150, "cat": 190})
    b = pictures(root / "b", {"ant": 50, "bee": 80, "cat": 110}, seed=1)
    common = {
        "image_size": "16",
        "batch_size": 8,
        "train_ratio": 0.5,
        "val_ratio": 0.25,
        "lr": 0.01,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
        "workers": 0,
        "augment": "none",
        "keep_checkpoints": 4,
    }
    start = api.finetune(
        "builtin:fashion_cnn", a, weights="none", epochs=6, output_dir=str(root / "start"), **common
    )
    child = api.finetune(start.run, b, epochs=3, output_dir=str(root / "tuned"), **common)
    return {"start": start.run, "tuned": child.run, "a": str(a), "b": str(b)}


def files(run: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(run).rglob("*")) if path.is_file()}


def test_a_blend_is_a_run_like_any_other_and_leaves_its_parents_alone(
    tuned: dict[str, str], tmp_path: Path
) -> None:
    before = files(tuned["tuned"]) | files(tuned["start"])
    result = api.blend(
        [tuned["start"], tuned["tuned"]],
        alphas="0,.25,.5,.75,1",
        retain=tuned["a"],
        output_dir=str(tmp_path / "blend"),
        device="cpu",
    )
    assert files(tuned["tuned"]) | files(tuned["start"]) == before
    found = result.blended
    assert [point.alpha for point in found.points] == [0, 0.25, 0.5, 0.75, 1] and found.rule == "mean"
    sums = [p.val["accuracy"] + p.retained["accuracy"] for p in found.points if p.retained]
    assert found.chosen == int(np.argmax(sums))
    alpha = found.points[found.chosen].alpha
    ends = [
        load_file(str(restore(tuned[name], torch.device("cpu")).reference.file))
        for name in ("start", "tuned")
    ]
    weights = load_file(str(restore(result.run, torch.device("cpu")).reference.file))
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            expected = (1 - alpha) * ends[0][name].double() + alpha * ends[1][name].double()
            assert (tensor - expected).abs().max() < 1e-6, name
    evaluated = api.evaluate(result.run, split="val", device="cpu")
    assert evaluated.metrics["accuracy"] == pytest.approx(found.points[found.chosen].val["accuracy"])
    assert not [*Path(result.run).rglob("*.png")]  # as the tuned run was told
    assert "chosen" in result.text() and "retained" in result.text()
    shown = api.show(result.run)
    assert shown["parent"]["run"] == tuned["tuned"] and "blend" in shown.text()
    child = api.continue_run(
        result.run, keep="weights", epochs=1, output_dir=str(tmp_path / "child"), device="cpu"
    )
    assert child.compared is not None
    with pytest.raises(UserError, match="is a blend"):
        api.continue_run(result.run, epochs=1, output_dir=str(tmp_path / "other"), device="cpu")


def test_the_ends_are_the_models_themselves(tuned: dict[str, str], tmp_path: Path) -> None:
    result = api.blend(
        [tuned["start"], tuned["tuned"]],
        alphas="0,1",
        retain=tuned["a"],
        output_dir=str(tmp_path / "blend"),
        device="cpu",
    )
    start, end = result.blended.points
    recorded = [row for row in Run(Path(tuned["tuned"])).evals.rows if row["split"] == "val"]
    assert start.val["loss"] == pytest.approx(recorded[0]["loss"], rel=1e-5)
    best = Run(Path(tuned["tuned"])).pointer("BEST")
    assert end.val["loss"] == pytest.approx(
        next(row["loss"] for row in recorded if row["step"] == best), rel=1e-5
    )


def test_a_model_in_channels_last_is_blended_too(tuned: dict[str, str], tmp_path: Path) -> None:
    settings = {
        "image_size": "32",
        "batch_size": 8,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
        "workers": 0,
    }
    name, runs = "timm:mobilenetv3_small_050", [str(tmp_path / "start"), str(tmp_path / "tuned")]
    api.finetune(name, tuned["a"], weights="none", max_steps=1, output_dir=runs[0], **settings)
    api.finetune(runs[0], tuned["b"], max_steps=2, output_dir=runs[1], **settings)
    result = api.blend(runs, alphas="0,.5,1", choose="best", output_dir=str(tmp_path / "blend"), device="cpu")
    point = result.blended.points[result.blended.chosen]
    assert api.evaluate(result.run, split="val", device="cpu").metrics["loss"] == pytest.approx(
        point.val["loss"]
    )


def test_a_blend_has_a_threshold_of_its_own_and_its_rows_no_other(tmp_path: Path) -> None:
    data = pictures(tmp_path / "two", {"ant": 100, "bee": 130}, number=20)
    settings = {
        "image_size": "16",
        "batch_size": 8,
        "lr": 0.01,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
    }
    settings |= {"workers": 0, "threshold": "f1", "train_ratio": 0.5, "val_ratio": 0.25}
    start = api.finetune(
        "builtin:fashion_cnn", data, weights="none", epochs=1, output_dir=str(tmp_path / "s"), **settings
    )
    drawn = {**settings, "pictures": True}
    tuned = api.finetune(start.run, data, epochs=2, output_dir=str(tmp_path / "t"), **drawn)
    result = api.blend([start.run, tuned.run], alphas="0,.5,1", output_dir=str(tmp_path / "b"), device="cpu")
    assert (Path(result.run) / "blend.png").stat().st_size > 5000
    point = result.blended.points[result.blended.chosen]
    assert not [name for name in point.val if "threshold" in name]
    written = restore(result.run, torch.device("cpu"))
    assert written.built.decision is not None and written.built.decision == result.blended.decision
    assert written.built.decision.threshold is not None
    assert (
        api.evaluate(result.run, split="val", device="cpu").metrics["threshold"]
        == written.built.decision.threshold
    )


def test_test_never_chooses_a_blend(tuned: dict[str, str], tmp_path: Path) -> None:
    brightness = {"ant": 110, "bee": 150, "cat": 190}
    told = []
    for name, splits in (("two", ("train", "test")), ("one", ("",))):
        for number, split in enumerate(splits):
            pictures(tmp_path / name / split, brightness, number=6, seed=number)
        result = api.blend(
            [tuned["start"], tuned["tuned"]],
            alphas="0,1",
            retain=str(tmp_path / name),
            output_dir=str(tmp_path / f"{name}-blend"),
            device="cpu",
        )
        told += [(where, split) for where, split, _, _ in result.blended.changes if where != "own data"]
    assert set(told) == {
        ("retained data", "test"),
        ("retained data, on which the choice was made too", "all"),
    }


def test_statistics_that_are_estimated_change_what_is_written(tuned: dict[str, str], tmp_path: Path) -> None:
    runs = [
        api.blend(
            [tuned["start"], tuned["tuned"]],
            alphas="0,.5,1",
            bn=bn,
            choose="best",
            output_dir=str(tmp_path / bn),
            device="cpu",
        )
        for bn in ("keep", "estimate")
    ]
    kept, estimated = ([p.val["loss"] for p in run.blended.points] for run in runs)
    assert kept != estimated and np.isfinite(estimated).all()


def test_the_last_checkpoints_are_averaged_in_a_fresh_process(tuned: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "mean"
    words = ["blend", tuned["tuned"], "--last", "3", "--json", "--output-dir", target, "--device", "cpu"]
    done = fresh.run(*words, module="warmstart")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    names = [point["name"] for point in told["points"]]
    steps = Run(Path(tuned["tuned"])).checkpoint_steps()[-3:]
    assert names == [*(f"step {step}" for step in steps), "mean of 3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tuned}", "--last", "9"], "keeps the checkpoints"),
        (["{start}", "{tuned}", "--choose", "worst"], "best, mean, or gain=SHARE"),
        (["{start}", "{tuned}", "--choose", "mean"], "without retained images"),
        (["{start}", "{tuned}", "--alphas", "0,2"], "shares from 0"),
        (["{start}", "{tuned}", "--alphas", "x"], "not a list of numbers"),
        (["{start}", "{tuned}", "--bn", "new"], "keep \\(blended"),
        (["{start}"], "name the start model first"),
        (["{tuned}", "{tuned}", "{tuned}"], "START TUNED"),
    ],
)
def test_what_cannot_be_blended_is_said(
    tuned: dict[str, str],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.format(**tuned) for argument in arguments]
    assert main(["blend", *given, "--output-dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    import re

    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused(tuned: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(UserError):
        api.blend([str(other), tuned["tuned"]], output_dir=str(tmp_path / "x"), device="cpu")


def points(near: list[float], far: list[float] | None = None) -> list[Point]:
    steps = len(near) - 1
    return [
        Point(str(i), i / steps, {"accuracy": value}, None if far is None else {"accuracy": far[i]})
        for i, value in enumerate(near)
    ]


def test_rules_choose_what_they_say() -> None:
    assert choose(points([0.5, 0.8, 0.8]), "best", "accuracy") == 1, "ties go nearer to the start"
    assert choose(points([0.5, 0.7, 0.8], [0.9, 0.89, 0.5]), "mean", "accuracy") == 1
    assert choose(points([0.5, 0.74, 0.8]), "gain=.8", "accuracy") == 1
    assert choose(points([0.5, 0.73, 0.8]), "gain=.8", "accuracy") == 2
    assert choose(points([0.5, 0.6, 0.5]), "gain=.8", "accuracy") == 0, "no gain: the start"
    less = [Point(str(i), i / 2, {"loss": value}, None) for i, value in enumerate((0.9, 0.4, 0.6))]
    assert choose(less, "best", "loss") == 1
