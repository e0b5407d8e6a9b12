"""What models cost, and the picture of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import warmstart
from warmstart.analysis.compression_plot import Mark, pareto, plot_compression
from warmstart.config.compress_section import CompressConfig
from warmstart.methods.compress.cost import count_parameters, latencies


def test_zeros_of_matrices_are_counted_and_those_of_biases_are_not() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.zero_()[0, 0] = 1
        layer.bias.zero_()
    assert count_parameters(layer) == (20, 5)


def test_what_takes_longer_is_measured_as_longer() -> None:
    found = latencies({"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.01)}, lambda: None)
    assert found["slow"].median > 3 * found["fast"].median
    assert found["slow"].low <= found["slow"].median <= found["slow"].high


def test_pareto_keeps_what_nothing_cheaper_beats() -> None:
    assert pareto([4.0, 3.0, 2.0, 1.0], [0.9, 0.91, 0.8, 0.85]) == [3, 1]
    assert pareto([1.0, 1.0], [0.5, 0.6]) == [1]


def test_the_picture(tmp_path: Path) -> None:
    marks = [
        Mark(f"round {n}", {"million MACs": 10.0 - n, "ms": 2.0}, 0.9 - n / 50, 0.8, 0.95) for n in range(4)
    ]
    plot_compression(marks, 2, "accuracy", tmp_path / "compression.png")
    assert (tmp_path / "compression.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", list(CompressConfig.model_fields))
def test_no_setting_of_compress_is_dead(name: str) -> None:
    """Something reads it; `problems` refuses it where nothing would."""
    folder = Path(warmstart.__file__).parent
    files = [*(folder / "methods" / "compress").glob("*.py"), folder / "verbs" / "compressing.py"]
    files.append(folder / "config" / "compress_section.py")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert re.search(rf"\b(settings|self|found|config)\.{name}\b", text)
