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
}


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
    assert config.optim.scheduler == ("plateau" if name == "document-001" else "cosine")
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
def test_the_expected_score_is_a_number(name):
    expected = next(line for line in text_of(name).split("\n") if line.startswith("# Expected:"))
    assert re.search(r"\.\d{2,} \+- \.\d{2,}", expected), "a preset states what it was measured to give"
