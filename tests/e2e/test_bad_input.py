"""Bad input gets a clear error, exit code 2, and loses nothing. The messages are asserted."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from warmstart.cli import main
from warmstart.models.builtin.fashion_cnn import FashionCNN


class Payload:
    """Unpickling this writes a file: the sign that a checkpoint has run code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


def pictures(folder: Path, number: int = 6, size: tuple[int, int] = (20, 20)) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(number):
        Image.fromarray(generator.integers(0, 255, size, np.uint8)).save(folder / f"{index}.png")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good data (`data`, classes a and b) and a good checkpoint (`good.pt`)."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        pictures(tmp_path / "data" / name, 10)
    torch.manual_seed(0)
    torch.save(FashionCNN(2).state_dict(), tmp_path / "good.pt")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail as the user's mistake, without a traceback or a trace on disk."""
    before = sorted(path for path in Path.cwd().rglob("*"))
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert sorted(path for path in Path.cwd().rglob("*")) == before, "nothing is written"
    return " ".join(err.split())


def no_data(place: Path) -> None: ...


def empty_folder(place: Path) -> None:
    (place / "bad").mkdir()


def one_class(place: Path) -> None:
    pictures(place / "bad" / "a")


def classes_differ(place: Path) -> None:
    for folder in ("train/cat", "train/dog", "val/cat", "val/dgo"):
        pictures(place / "bad" / folder)


def all_corrupt(place: Path) -> None:
    for name in "ab":
        pictures(place / "bad" / name)
    (place / "bad" / "a" / "0.png").write_bytes(b"\x89PNG broken")


DATA_CASES = {
    "missing": (no_data, "--data: bad does not exist"),
    "empty": (empty_folder, "bad.*(empty|no images|holds no)"),
    "one class": (one_class, "one class"),
    "classes differ": (classes_differ, "dgo.*Did you mean|dog.*dgo|dgo.*dog"),
    "corrupt": (all_corrupt, r"1 of 12 images \(8\.3%\) are unreadable: a/0\.png"),
}


@pytest.mark.parametrize("case", DATA_CASES)
def test_bad_data(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = DATA_CASES[case]
    make(place)
    text = refused(capsys, "finetune", "--weights", "good.pt", "--data", "bad", "--image-size", "16")
    assert re.search(message, text), text


def test_bad_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (place / "good.pt").read_bytes()
    (place / "cut.pt").write_bytes(content[: len(content) // 2])
    sign = place / "executed"
    (place / "pickle.pt").write_bytes(pickle.dumps({"w": Payload(sign)}))
    torch.save({"w": Payload(sign)}, place / "evil.pt")
    torch.save({"layer.weight": torch.zeros(3, 3)}, place / "other.pt")
    messages = {
        "god.pt": r"--weights: god\.pt does not exist.*Did you mean 'good\.pt'",
        "cut.pt": r"cut\.pt",
        "pickle.pt": r"pickle\.pt.*nothing in it was executed",
        "evil.pt": r"evil\.pt.*would run code of.*exec.*nothing in it was executed",
        "other.pt": r"other\.pt",
    }
    for name, message in messages.items():
        text = refused(capsys, "finetune", "--weights", name, "--data", "data")
        assert re.search(message, text), text
    assert not sign.exists(), "no code of the file was run"
    text = refused(capsys, "finetune", "--weights", "good.pt", "--model", "timm:resnet10t", "--data", "data")
    assert "timm:resnet10t" in text and "fashion_cnn" in text


def test_bad_settings_are_reported_together(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.yaml").write_text("optim: {lr: fast, schedulr: cosine}\ntrain: {epochs: 0}\nspeed: 3\n")
    text = refused(capsys, "finetune", "--config", "bad.yaml", "--min-lr", "5", "--data", "nowhere")
    for part in (
        "problems",
        "schedulr",
        "Did you mean 'scheduler'",
        "--epochs",
        "--lr",
        "'fast'",
        "'speed'",
        "nowhere",
    ):
        assert part in text, (part, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data is missing"),
        (("--data", "data"), "neither --model nor --weights"),
        (("--data", "data", "--weights", "good.pt", "--image-size", "4"), "image size|4x4"),
        (("--data", "data", "--weights", "good.pt", "--image-size", "0"), "image size"),
        (("--data", "data", "--weights", "good.pt", "--freeze", "conv9"), "'conv9' names no block.*conv1"),
        (("--data", "data", "--weights", "good.pt", "--freeze", "all"), "nothing would be trained"),
        (("--data", "data", "--weights", "good.pt", "--unfreeze", "1:head"), "epoch 0"),
        (("--data", "data", "--weights", "good.pt", "--optimizer", "adamv"), "adamv.*Did you mean"),
        (
            ("--data", "data", "--weights", "good.pt", "--precision", "bf16", "--device", "cpu"),
            "bf16 needs a CUDA",
        ),
        (("--data", "data", "--weights", "good.pt", "--device", "gpu"), "gpu"),
        (("--data", "data", "--model", "timm:resnet81"), "resnet81.*Did you mean"),
        (("--data", "data", "--weights", "good.pt", "--class-weights", "c=2"), "'?c'?"),
        (("--data", "data", "--weights", "good.pt", "--output-dir", "data"), "not empty.*resume"),
        (("--data", "data", "--weights", "good.pt", "--save-as", "good.pt"), "exists already"),
        (("--data", "data", "--weights", "good.pt", "--preset", "lite"), "lite.*Did you mean 'light'"),
        (("--data", "data", "--weights", "good.pt", "--batch-size", "1"), "BatchNorm"),
    ],
)
def test_bad_settings(
    arguments: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, "finetune", *arguments)
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "nowhere"), "nowhere"),
        (("evaluate", "good.pt"), "--data is missing"),
        (("evaluate", "good.pt", "--data", "data", "--split", "tset"), "tset"),
        (("predict", "good.pt", "nowhere.png"), "nowhere.png"),
        (("predict", "good.pt", "data/a/0.png", "--top-k", "0"), "top-k"),
        (("predict", "good.pt", "data/a/0.png", "--output", "x.txt"), "x.txt"),
        (("resume", "data"), "not a run directory"),
        (("show", "dta"), "Did you mean 'data'"),
        (("runs", "nowhere"), "nowhere"),
        (("init", "nowhere"), "nowhere"),
        (("check", "good.pt", "--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_of_the_other_verbs(
    arguments: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, *arguments))


def test_hidden_folders_are_no_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(place / "data" / ".ipynb_checkpoints")
    command = ["finetune", "--weights", "good.pt", "--data", "data", "--image-size", "16", "--max-steps", "1"]
    assert main([*command, "--output-dir", "run"]) == 0
    assert "2 classes (a, b)" in capsys.readouterr().err


def test_one_unreadable_image_is_quarantined_and_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "data" / "a" / "broken.png").write_bytes(b"\x89PNG broken")
    command = ["finetune", "--weights", "good.pt", "--data", "data", "--image-size", "16", "--max-steps", "1"]
    assert main([*command, "--output-dir", "run", "--max-corrupt", ".1"]) == 0
    assert "1 unreadable images are left out" in capsys.readouterr().err
    assert "a/broken.png" in (place / "run" / "quarantine.csv").read_text()
