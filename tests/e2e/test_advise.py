"""`warmstart advise`: facts of real data, settings that run, memory that is measured, bad input that is named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import warmstart as ws
from warmstart.cli import main
from warmstart.config import io
from warmstart.errors import UserError
from warmstart.methods.advise_facts import Facts
from warmstart.methods.advise_look import family
from warmstart.methods.advise_report import as_yaml
from warmstart.models.zoo import create
from warmstart.run.reader import Run

MOBILENET = "mobilenetv3_small_100.cifar10-64px.safetensors"


@pytest.fixture(autouse=True)
def _calm(one_thread: None) -> None:
    """Every test of this file computes on one thread."""


@pytest.fixture
def advise(overlapping: Path) -> Any:
    """The advice for the small pictures and a small network, on a CPU."""

    def ask(**changes: Any) -> Any:
        given = {
            "data": str(overlapping),
            "model": "builtin:fashion_cnn",
            "weights": "none",
            "image_size": "16",
        }
        return ws.advise(**{**given, "device": "cpu", **changes})

    return ask


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small transformer that name their three classes."""
    torch.manual_seed(0)
    module = create("timm:test_vit", 3, image_size=(32, 32)).module
    path = tmp_path_factory.mktemp("vit") / "vit.pt"
    torch.save({"state_dict": module.state_dict(), "class_names": ["ant", "bee", "cat"]}, path)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def ids_in(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        return np.unique(np.asarray(mask))


def run_config(file: Path, folder: Path, *more: str) -> Run:
    """Two steps of the settings in a file, by the command line."""
    given = ["--config", str(file), "--output-dir", str(folder), "--max-steps", "2", "--device", "cpu"]
    assert main(["finetune", *given, *more]) == 0
    return Run(folder)


# --- facts of real data, counted again without warmstart ---


def some_of(source: Path, target: Path, number: int) -> Path:
    """A copy with the first so many files of every folder."""
    for folder in (path for path in source.rglob("*") if path.is_dir()):
        for file in sorted(path for path in folder.iterdir() if path.is_file())[:number]:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return target


@pytest.mark.shared
def test_the_facts_of_real_photographs_are_those_counted_by_hand(shared: Path, tmp_path: Path) -> None:
    data, target = some_of(shared / "data" / "dogcat", tmp_path / "dogcat", 60), tmp_path / "advice.yaml"
    weights = shared / "models" / MOBILENET
    files = {split: sorted((data / split).rglob("*.jpg")) for split in ("train", "val", "test")}
    sizes = [size_of(path) for paths in files.values() for path in paths]
    by_class = Counter(path.parent.name for path in files["train"])
    found = ws.advise(str(data), str(weights), device="cpu", to=str(target)).to_json()
    facts = found["facts"]
    assert [facts[f"num_{split}"] for split in files] == [len(paths) for paths in files.values()]
    assert (facts["smallest"], facts["largest"]) == (min(by_class.values()), max(by_class.values()))
    assert (facts["width"], facts["height"]) == tuple(
        int(np.median(column)) for column in zip(*sizes, strict=True)
    )
    assert facts["family"] == "convolutional" and facts["weights"] == "trained"
    # CIFAR-10 has cats and dogs among its ten.
    assert (facts["head"], facts["num_known"], facts["num_classes"]) == ("kept", 2, 2)
    # So few images: the head alone, on features that are computed once.
    assert (found["method"], found["config"]["adapt"]["freeze"]) == ("head", ["backbone"])
    assert found["fits"] is True and found["trials"][-1]["memory"] > 2**20
    run = run_config(target, tmp_path / "run", "--limit", "64")
    plan = {row["name"]: row["mode"] for row in run.plan["rows"]}
    assert plan.pop("head") == "full" and set(plan.values()) == {"frozen"}


@pytest.mark.shared
def test_the_facts_of_real_masks_are_those_counted_by_hand(shared: Path, tmp_path: Path) -> None:
    data, target = some_of(shared / "data" / "camvid", tmp_path / "camvid", 60), tmp_path / "advice.yaml"
    given = {"weights": "none", "image_size": "48x64", "ignore": 11, "device": "cpu"}
    found = ws.advise(str(data), "builtin:microsegformer", to=str(target), **given)
    settings = yaml.safe_load(target.read_text())
    assert settings["data"]["batch_size"] == 8 and settings["data"]["ignore"] == 11
    facts = found.proposal.facts
    masks = sorted((data / "train" / "masks").glob("*.png"))
    has = sum(np.isin(np.arange(11), ids_in(path)).astype(int) for path in masks)
    assert (facts.num_train, facts.smallest, facts.largest) == (len(masks), has.min(), has.max())
    assert (facts.task, facts.num_classes, facts.height, facts.width) == ("masks", 11, 360, 480)
    assert (facts.family, facts.weights, facts.start_accuracy) == ("transformer", "random", None)
    assert found.proposal.advice.method == "full" and facts.num_known == 0
    run = run_config(target, tmp_path / "run", "--limit", "16")
    assert run.resolved["task"] == "segmentation"


@pytest.mark.shared
def test_a_start_that_is_good_already_is_measured_and_kept(shared: Path) -> None:
    weights = shared / "models" / "fashion_mnist" / "mnist_cnn3.pt"
    found = ws.advise(str(shared / "data" / "fashion900"), str(weights), device="cpu").to_json()
    assert found["facts"]["start_accuracy"] > 0.9
    assert {row["rule"] for row in found["settings"]} >= {"method.good", "rate.good", "augment.small"}


def test_a_run_tells_its_rate_and_its_augmentation(
    advise: Any, small_settings: dict[str, Any], tmp_path: Path
) -> None:
    run = ws.finetune(**small_settings, max_steps=3, rotation=3, output_dir=str(tmp_path / "run")).run
    found = advise(model=run, weights=None, image_size=None)
    facts, rules = found.proposal.facts, {d.rule.id for d in found.proposal.advice.decisions}
    assert (facts.original_lr, facts.weights, facts.head, facts.num_known) == (0.01, "trained", "kept", 3)
    assert facts.augment_recorded and "augment.recorded" in rules
    assert found.proposal.loaded.config.data.augment == "auto"
    # Its division too: what it was trained on is not what the advice would test on.
    assert facts.num_train == Run(Path(run)).resolved["data"]["sizes"]["train"]


# --- the file runs, and says why ---


def test_the_file_gives_the_settings_back_with_a_reason_for_each(advise: Any, tmp_path: Path) -> None:
    target = tmp_path / "advice.yaml"
    found = advise(to=str(target), seed=7)
    text = target.read_text(encoding="utf-8")
    loaded = io.load({}, str(target))
    assert loaded.config == found.proposal.loaded.config and loaded.warnings == ()
    for decision in found.proposal.advice.decisions:
        section, name = decision.path.split(".")
        reason = f"# {decision.rule.row}, {decision.rule.id}: "
        assert text.index(reason) < text.index(f"  {name}: ", text.index(f"\n{section}:\n"))
    assert "# given\n  seed: 7\n" in text and "  momentum:" not in text
    assert "nobody has measured them" in " ".join(text.replace("\n# ", " ").split())
    run = run_config(target, tmp_path / "run")
    assert run.status["state"] == "finished" and run.status["step"] == 2
    assert str(target) in found.text() and "later (4.16)" in found.text()


def test_what_is_given_stays(advise: Any) -> None:
    found = advise(epochs=3, lr=2e-3, freeze="conv1")
    config, said = found.proposal.loaded.config, {d.path for d in found.proposal.advice.decisions}
    assert (config.train.epochs, config.optim.lr, config.adapt.freeze) == (3, 2e-3, ("conv1",))
    assert not said & {"train.epochs", "optim.lr", "adapt.freeze", "data.path"}


def test_nothing_is_trained_or_written(advise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state()
    found = advise(model=module, weights=None)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and list(tmp_path.iterdir()) == []
    assert "nothing was written" in found.text()
    with pytest.raises(UserError, match="objects of this program"):
        advise(model=module, weights=None, to=str(tmp_path / "advice.yaml"))


def test_a_transformer_with_few_images_is_advised_adapters_and_they_train(
    advise: Any, vit: Path, tmp_path: Path
) -> None:
    target = tmp_path / "advice.yaml"
    found = advise(model="timm:test_vit", weights=str(vit), image_size="32", to=str(target))
    assert found.proposal.facts.family == "transformer" and found.proposal.advice.method == "lora"
    assert found.proposal.loaded.config.lora.rank == 8 and found.proposal.fits is True
    run = run_config(target, tmp_path / "run")
    assert any(row["mode"] == "lora" for row in run.plan["rows"])


# --- memory ---


def test_what_does_not_fit_gets_smaller_until_it_does() -> None:
    """A memory between what the whole batch takes and what half of it takes."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (820, 96, 96, 3), dtype=np.uint8), np.arange(820) % 3
    given = {"weights": "none", "image_size": "96", "device": "cpu", "cache": "off"}
    whole = ws.advise((images, labels), "timm:mobilenetv3_small_100", **given).proposal
    (trial,) = whole.trials
    assert (trial.batch_size, trial.accumulate, trial.fits) == (32, 1, True)
    planned = f"{0.75 * trial.memory / 0.9 / 2**20:.0f}MB"
    found = ws.advise((images, labels), "timm:mobilenetv3_small_100", device_memory=planned, **given).proposal
    *others, last = found.trials  # where other work disturbs the watch, half may not do either
    assert [t.fits for t in found.trials] == [*[False] * len(others), True]
    assert [(t.batch_size, t.accumulate) for t in found.trials] == [(32, 1), (16, 2), (8, 4)][
        : len(others) + 1
    ]
    assert others and last.memory < 0.75 * trial.memory < others[0].memory
    text = as_yaml(found)
    assert "memory.batch" in text and f"  batch_size: {last.batch_size}\n" in text
    assert f"  accumulate: {last.accumulate}\n" in text


def test_where_nothing_fits_everything_was_tried_and_it_is_said(advise: Any) -> None:
    found = advise(device_memory="1MB")
    proposal = found.proposal
    assert proposal.fits is False and "NOTHING FITS" in found.text()
    assert {trial.checkpointing for trial in proposal.trials} == {False, True}
    tried = {trial.method for trial in proposal.trials}
    assert tried == {"full", "last-blocks", "head"}
    assert proposal.trials[-1].memory == min(trial.memory for trial in proposal.trials if trial.memory)


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        ("timm:test_vit", (32, 32), "transformer"),
        ("torchvision:vit_b_32", (64, 64), "transformer"),
        ("builtin:microsegformer", None, "transformer"),
        ("timm:mobilenetv3_small_100", None, "convolutional"),
        ("torchvision:convnext_tiny", None, "convolutional"),
        ("builtin:ocec", None, "convolutional"),
    ],
)
def test_transformers_and_convolutional_networks_are_told_apart(
    name: str, size: tuple[int, int] | None, kind: str
) -> None:
    with torch.device("meta"):
        module = create(name, 3, image_size=size).module
    assert family(module) == kind


# --- bad input ---


def picture_folder(root: Path, **numbers: int) -> Path:
    for name, number in numbers.items():
        (root / name).mkdir(parents=True)
        for each in range(number):
            Image.new("RGB", (20, 20), (each * 9 % 255, 40, 90)).save(root / name / f"{each}.png")
    return root


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert main(["advise", *tokens]) == 2
    return capsys.readouterr().err


def test_bad_input_is_named(
    tmp_path: Path, overlapping: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", "builtin:fashion_cnn", "--weights", "none", "--device", "cpu")
    data = str(overlapping)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no pictures here")
    assert "notes" in refused(capsys, str(tmp_path / "notes"), *model)
    assert "does not exist" in refused(capsys, str(tmp_path / "nowhere"), *model)
    assert "one class" in refused(capsys, str(picture_folder(tmp_path / "one", ant=5)), *model)
    assert "--goal 'bset'" in (said := refused(capsys, data, *model, "--goal", "bset")) and "'best'" in said
    for nonsense in ("lots", "8", "-3GB", "0GB", "8 apples"):
        assert "is not an amount of memory" in refused(capsys, data, *model, f"--device-memory={nonsense}")
    taken = tmp_path / "taken.yaml"
    taken.write_text("mine")
    assert "exists already" in refused(capsys, data, *model, "--to", str(taken))
    assert "folder" in refused(capsys, data, *model, "--to", str(tmp_path / "none" / "a.yaml"))
    assert taken.read_text() == "mine"
    assert "neither --model nor --weights" in refused(capsys, data)
    assert "unknown model" in refused(capsys, data, "--model", "timm:resnet81", "--weights", "none")
    masks = str(shared / "data" / "camvid")
    said = refused(capsys, masks, "--ignore", "11", "--limit", "20", *model)
    assert "says a class of every image, and the data have masks" in said


def test_three_images_get_an_answer_with_what_it_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = str(picture_folder(tmp_path / "three", ant=2, bee=1))
    model = ("--model", "builtin:fashion_cnn", "--weights", "none", "--image-size", "16")
    assert main(["advise", three, *model]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "3 train; 2 classes, 1 to 2" in told and "fewer than 10 training images" in told
    assert "note (own): No val images" in told and "train.patience" not in told


def test_the_json_is_one_object_with_everything(
    overlapping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "builtin:fashion_cnn", "--weights", "none", "--image-size", "16", "--device", "cpu"]
    assert main(["advise", str(overlapping), *given, "--json", "--goal", "quick"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["facts"]) == set(Facts.__dataclass_fields__) and found["facts"]["goal"] == "quick"
    assert all(row["reason"] and row["row"] and row["rule"] for row in found["settings"])
    assert found["effective_batch"] == found["config"]["data"]["batch_size"]
    assert found["trials"][-1]["seconds_per_epoch"] > 0 and found["written"] is None
