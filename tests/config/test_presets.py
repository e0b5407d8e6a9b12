"""Every shipped preset loads, says its command, and holds the document's numbers."""

from __future__ import annotations

import re
import shlex
from importlib import resources

import pytest

from warmstart.commands import COMMANDS
from warmstart.config import io

# Rows 0.12 to 0.15, 0.29 and 0.30: batch size, rate, epochs, floor, dropout, frozen.
DOCUMENT = {
    "light": (256, 0.001, 50, 1e-5, 0.3, ()),
    "deep": (512, 0.002, 100, 5e-5, 0.3, ()),
    "head": (128, 0.001, 30, 1e-5, 0.3, ("conv*",)),
    "conservative": (256, 0.0005, 30, 1e-5, 0.2, ()),
    "stage-1": (256, 0.001, 30, 1e-5, 0.3, ()),
    "stage-2": (512, 0.0005, 20, 1e-5, 0.3, ()),
    "document-001": (1024, 0.00005, 200, 0.0, 0.3, ()),  # row 1.03
    "clip-full": (16, 1e-5, 20, 0.0, None, ()),  # row 4.07
    "clip-lora": (32, 5e-4, 10, 0.0, None, ()),
    "alexnet-tiny-imagenet": (64, 1e-4, 2, 0.0, None, ()),  # row 3.11, with the rate of pre-trained weights
    "mobilenetv2-cifar10": (128, 0.01, 20, 0.0, 0.2, ()),  # row 3.12, the same, and a shortened schedule
}
SCHEDULERS = {"document-001": "plateau", "alexnet-tiny-imagenet": "none"}  # the others': cosine
CLIP = ("clip-full", "clip-lora")
UNMEASURED = (*CLIP, "alexnet-tiny-imagenet", "mobilenetv2-cifar10")


def text_of(name: str) -> str:
    return (resources.files("warmstart.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def test_every_preset_is_checked_here():
    assert io.preset_names() == sorted(DOCUMENT)


@pytest.mark.parametrize("name", DOCUMENT)
def test_numbers_of_the_document(name, tmp_path):
    loaded = io.load({"data": str(tmp_path), "model": "builtin:fashion_cnn", "weights": "none"}, preset=name)
    config = loaded.config
    found = (
        config.data.batch_size,
        config.optim.lr,
        config.train.epochs,
        config.optim.min_lr,
        config.model.dropout,
        config.adapt.freeze,
    )
    assert found == DOCUMENT[name]
    assert config.optim.scheduler == SCHEDULERS.get(name, "cosine")
    assert loaded.warnings == ()
    assert set(loaded.origins.values()) == {"flag", f"preset {name}"}


@pytest.mark.parametrize("name", DOCUMENT)
def test_the_header_says_the_command(name):
    header = [line for line in text_of(name).split("\n") if line.startswith("#")]
    command = next(line for line in header if "warmstart finetune" in line)
    program, verb, *arguments = shlex.split(command.lstrip("# "))
    assert (program, verb) == ("warmstart", "finetune")
    assert arguments[arguments.index("--preset") + 1] == name
    flags = {token[2:] for token in arguments if token.startswith("--")}
    assert flags <= COMMANDS["finetune"].flag_names()
    assert any(re.match(r"# Expected: \S", line) for line in header)


@pytest.mark.parametrize("name", DOCUMENT)
def test_the_expected_score_is_a_number_or_said_to_be_none(name):
    expected = next(line for line in text_of(name).split("\n") if line.startswith("# Expected:"))
    if name in UNMEASURED:
        assert expected.startswith("# Expected: not measured, as ")
        return
    assert re.search(r"\.\d{2,} \+- \.\d{2,}", expected), "a preset states what it was measured to give"


def test_document_004s_contrast_of_full_and_lora(tmp_path):
    """Row 4.07, with the keys of 4.22 and 4.23."""
    full, lora = (io.load({"data": str(tmp_path)}, preset=name).config for name in CLIP)
    assert (full.optim.accumulate, lora.optim.accumulate) == (2, 1)
    assert (full.adapt.layer_decay, lora.adapt.layer_decay) == (0.95, None)
    assert (full.lora.rank, lora.lora.rank) == (None, 8)
    assert (lora.lora.alpha, lora.lora.dropout, lora.lora.targets) == (32, 0.1, ("q_proj", "v_proj"))
    assert (full.train.patience, lora.train.patience) == (5, 3)
    for config in (full, lora):
        assert (str(config.optim.warmup), config.optim.clip, config.optim.weight_decay) == ("0.1", 1.0, 0.01)
        assert (config.optim.scheduler, config.train.min_delta) == ("cosine", 0.001)
        assert (config.train.precision, config.model.name) == ("auto", "hf:openai/clip-vit-base-patch32")


def test_document_003s_two_examples(tmp_path):
    """Rows 3.11 and 3.12, beside what 3.13 corrects."""
    a, b = (io.load({"data": str(tmp_path)}, preset=name).config for name in UNMEASURED[2:])
    assert (a.model.name, b.model.name) == (
        "torchvision:alexnet",
        "torchvision:mobilenet_v2.IMAGENET1K_V1",  # what pretrained=True meant
    )
    assert a.model.weights is None and b.model.weights is None  # pre-trained, or refused
    assert (a.data.image_size, a.data.workers, a.data.augment) == ((224, 224), 4, "none")
    assert (a.optim.optimizer, a.optim.weight_decay) == ("adam", 0.0)
    assert (b.data.image_size, b.data.workers, b.data.crop_pad, b.data.flip) == ((32, 32), 2, 4 / 32, 0.5)
    assert (b.optim.optimizer, b.optim.momentum, b.optim.weight_decay) == ("sgd", 0.9, 5e-4)
    for config in (a, b):  # the whole image, the weights' own mean and std
        assert (config.data.crop_pct, config.data.mean, config.data.std) == (1.0, None, None)
        assert config.optim.clip is None and config.optim.warmup is None


@pytest.mark.parametrize("name", UNMEASURED[2:])
def test_document_003s_corrections_are_said_with_the_way_back(name, tmp_path):
    """The flags that the lines name are there."""
    lines = [line for line in text_of(name).split("\n") if line.startswith("# - ")]
    named = set(re.findall(r"--([a-z][a-z-]*)", text_of(name)))
    assert len(lines) >= 5 and len(named) >= 2 and named <= COMMANDS["finetune"].flag_names()
