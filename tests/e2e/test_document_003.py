"""Document 003's two examples (3.11, 3.12) as presets, and what their code got wrong (3.13)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import warmstart as ws
from tiny_imagenet import CLASSES, write_tiny_imagenet
from torchvision_cache import MOBILENET, write_cache
from warmstart.cli import main
from warmstart.config import io
from warmstart.config.schema import OptimConfig
from warmstart.engine.checks import high_rate
from warmstart.engine.prepare import prepare
from warmstart.engine.schedule import make_schedule
from warmstart.errors import UserError
from warmstart.run.reader import Run

STEPS = 6  # of two epochs of three


@pytest.fixture(autouse=True)
def _elsewhere(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("torch")
    write_cache(home)
    return home


@pytest.fixture
def mobilenet(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of MobileNetV2 in that cache, which is in force."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    return torch_home / "hub" / "checkpoints" / Path(MOBILENET.url).name


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 colour pictures of 32 px to train, 6 val, 6 test, in three classes."""
    root, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, num in (("train", 8), ("val", 2), ("test", 2)):
        for code, name in enumerate(("cat", "dog", "frog")):
            (root / split / name).mkdir(parents=True)
            for number in range(num):
                pixels = rng.normal(60 + 70 * code, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def tune(data: Path, folder: str, **settings: Any) -> Run:
    given = {
        "batch_size": 8,
        "epochs": 2,
        "log_every": "1steps",
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
    }
    ws.finetune(settings.pop("model", None), str(data), output_dir=folder, **{**given, **settings})
    return Run(Path(folder))


def weights_at(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model.safetensors")


def train_rows(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metrics.rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def example_b(torch_home: Path, small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        run = tune(small_cifar, str(tmp_path_factory.mktemp("b") / "run"), preset="mobilenetv2-cifar10")
    torch.set_num_threads(threads)
    return run


def test_example_b_starts_from_torchvisions_file(example_b: Run, mobilenet: Path, small_cifar: Path) -> None:
    """3.13: pre-trained means the weights of the file, to the bit, whether it comes from the cache or by hand."""
    source = example_b.resolved["model"]["source"]
    assert (source["kind"], source["path"]) == ("pretrained", MOBILENET.url)
    assert example_b.resolved["model"]["head"]["new"] == ["cat", "dog", "frog"]
    by_hand = tune(small_cifar, "by-hand", preset="mobilenetv2-cifar10", weights=str(mobilenet))
    one, other = (weights_at(run, STEPS) for run in (example_b, by_hand))
    assert all(torch.equal(one[name], other[name]) for name in one)
    held = tune(small_cifar, "held", preset="mobilenetv2-cifar10", freeze="backbone", max_steps=1)
    published = torch.load(mobilenet, weights_only=True)
    kept = weights_at(held, 1)
    assert all(torch.equal(kept[name], published[name]) for name in published if "classifier" not in name)


def test_example_b_is_the_articles(example_b: Run) -> None:
    """3.12: the head, dropout, crop and flip, SGD's numbers."""
    plan, config = example_b.plan, example_b.config
    assert {row["mode"] for row in plan["rows"]} == {"full"}
    assert {row["lr"] for row in plan["rows"]} == {0.01} and {
        row["weight_decay"] for row in plan["rows"]
    } == {0.0005}
    assert config["optim"]["optimizer"] == "sgd" and config["model"]["dropout"] == 0.2
    augment = example_b.resolved["augment"]["settings"]
    moved = {name for name in ("crop_pad", "flip", "rotation", "zoom", "erase") if augment[name]}
    assert moved == {"crop_pad", "flip"} and augment["crop_pad"] * 32 == 4
    head = weights_at(example_b, STEPS)["classifier.1.weight"]
    assert head.shape == (3, 1280)


def test_the_rate_of_every_step_is_that_of_a_scheduler_that_steps_last(example_b: Run) -> None:
    """3.13: the article steps it first, and so never trains with the rate that it names."""
    found = [row["lr"] for row in train_rows(example_b)]

    def by_torch(scheduler_first: bool) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        rates = []
        for _ in range(STEPS):
            if scheduler_first:
                optimizer.step()  # without gradients: keeps torch from warning of the article's order
                scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
            if not scheduler_first:
                optimizer.step()
                scheduler.step()
        return rates

    np.testing.assert_allclose(found, by_torch(scheduler_first=False), rtol=1e-9)
    assert found[0] == 0.01 and by_torch(scheduler_first=True)[0] < 0.0095


def test_halved_every_20_epochs_is_a_step_and_no_cosine() -> None:
    """3.13: what the article says of its schedule, and what it does, over its 200 epochs of 391 steps."""
    said = make_schedule(
        OptimConfig(scheduler="step", scheduler_step="20epochs", scheduler_gamma=0.5), 200 * 391, 391
    )
    done = make_schedule(OptimConfig(scheduler="cosine"), 200 * 391, 391)
    for times in range(1, 10):
        at = 20 * times * 391
        assert said.shape(at) == 0.5**times and said.shape(at - 1) == 0.5 ** (times - 1)
        assert done.shape(at) == pytest.approx((1 + math.cos(math.pi * times / 10)) / 2)
    assert done.shape(20 * 391) > 0.97


def test_a_rate_for_random_weights_is_named(mobilenet: Path, small_cifar: Path, tmp_path: Path) -> None:
    """3.13: .1 on pre-trained weights. Not where they are random, nor where only the head has it."""

    def told(**settings: Any) -> list[str]:
        given = {"data": str(small_cifar), "device": "cpu", **settings}
        loaded = io.load(given, preset="mobilenetv2-cifar10")
        return high_rate(prepare(loaded.config, loaded.origins, tmp_path).job)

    (warning,) = told(lr=0.1)
    assert f"sgd at 0.1 is a rate for random weights, and these come from {MOBILENET.url}" in warning
    assert "Try --lr 0.01" in warning
    assert told(lr=0.1, weights=str(mobilenet)) == [warning.replace(MOBILENET.url, str(mobilenet))]
    assert told(optimizer="adam", lr=0.02)
    assert not told() and not told(lr=0.1, weights="none")
    assert not told(lr=0.1, freeze="backbone") and not told(lr=0.01, lrs="head=.1")


def test_the_warning_is_logged(mobilenet: Path, small_cifar: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tune(small_cifar, "article", preset="mobilenetv2-cifar10", max_steps=1, lr=0.1)
    assert "sgd at 0.1 is a rate for random weights" in capfd.readouterr().err


def test_measuring_changes_nothing(example_b: Run) -> None:
    """The article tests in training mode: BatchNorm would have counted the batches of val and test as well."""
    counted = {
        int(tensor)
        for name, tensor in weights_at(example_b, STEPS).items()
        if name.endswith("num_batches_tracked")
    }
    assert counted == {STEPS}
    splits = {row["split"] for row in example_b.evals.rows}
    assert {"train", "val", "test"} <= splits
    before = [row for row in example_b.evals.rows if row["split"] == "test"][-1]["accuracy"]
    assert ws.evaluate(str(example_b.path), split="test").metrics["accuracy"] == before


def test_weights_that_cannot_be_had_stop_the_run(
    small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.13: no silent start from nothing."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"mobilenet_v2\.IMAGENET1K_V1 are not in the cache"):
        tune(small_cifar, "never", preset="mobilenetv2-cifar10")
    assert not Path("never").exists()


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet(tmp_path_factory.mktemp("data") / "tiny-imagenet-200")


def test_example_a_is_planned_with_torchvisions_alexnet(
    torch_home: Path,
    tiny_imagenet: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """3.11, with the real AlexNet. Its rows of classes that ImageNet names alike are kept (tiny_imagenet.CLASSES)."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    command = ["finetune", "--preset", "alexnet-tiny-imagenet", "--data", str(tiny_imagenet)]
    assert main([*command, "--batch-size", "4", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["resolved"]["model"]["source"]["kind"] == "pretrained"
    assert tuple(found["resolved"]["model"]["head"]["kept"]) == CLASSES
    assert {(row["mode"], row["lr"], row["weight_decay"]) for row in found["plan"]} == {("full", 1e-4, 0.0)}
    assert found["resolved"]["pace"]["total_steps"] == 2 * 5  # 18 images in fours
    assert found["resolved"]["model"]["preprocessing"]["image_size"] == [224, 224]


def test_example_a_trains_measures_and_names_the_classes(tiny_imagenet: Path) -> None:
    """With a smaller model: a loss and an accuracy for each epoch, and answers for the images without labels."""
    run = tune(
        tiny_imagenet,
        "a",
        preset="alexnet-tiny-imagenet",
        model="torchvision:squeezenet1_1",
        weights="none",
        image_size="64x64",
        lr=1e-3,
        batch_size=4,
    )
    epochs = [row["train_loss_avg"] for row in run.metrics.rows if row["kind"] == "epoch"]
    val = {row["step"]: row["accuracy"] for row in run.evals.rows if row["split"] == "val"}
    assert len(epochs) == 2 and all(map(math.isfinite, epochs))
    assert list(val) == [0, 5, 10] and all(0 <= accuracy <= 1 for accuracy in val.values())
    assert {row["lr"] for row in train_rows(run)} == {1e-3}
    found = ws.predict("a", [str(tiny_imagenet / "test" / "images")]).predictions
    assert len(found) == 2 and all(set(one.classes) == set(CLASSES) for one in found)


def test_one_level_too_high_is_told(tiny_imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3.13: the folder that the article gives to ImageFolder."""
    command = ["finetune", "--preset", "alexnet-tiny-imagenet", "--data", str(tiny_imagenet.parent)]
    assert main([*command, "--weights", "none"]) == 2
    assert f"--data {tiny_imagenet}" in capsys.readouterr().err
