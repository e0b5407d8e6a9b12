"""The pictures of a sweep: values lie where they should, and lines that are better lie higher."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart.analysis import sweep_plot
from warmstart.analysis.sweep_plot import Line, plot_importance, plot_parallel
from warmstart.config.sweep_values import Choice, Range, parse_space

SPACE = parse_space(["lr=1e-4..1e-2:log", "batch-size=16,8,64", "freeze=none|stem,conv*", "epochs=2..10:int"])


def lines(num: int) -> list[Line]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(num):
        rate = 10 ** draw.uniform(-4, -2)
        values = {
            "lr": f"{rate:.3g}",
            "batch-size": str(draw.choice(["16", "8", "64"])),
            "freeze": str(draw.choice(["none", "stem,conv*"])),
            "epochs": str(draw.integers(2, 11)),
        }
        score = 0.9 - 0.1 * abs(math.log10(rate) + 3) + draw.normal(0, 0.02)
        found.append(Line(values, score, number % 4 != 3, False))
    best = max((line for line in found if line.is_finished), key=lambda line: line.value)
    return [line._replace(is_best=line is best) for line in found]


def test_values_lie_where_they_should() -> None:
    height = sweep_plot._height
    assert [height(Choice(("16", "8", "64")), value) for value in ("8", "16", "64")] == [0, 0.5, 1], "by size"
    assert [height(Choice(("sgd", "adamw")), value) for value in ("sgd", "adamw")] == [0, 1], "as given"
    assert height(Range(1e-4, 1e-2, is_log=True), "1e-3") == pytest.approx(0.5)
    assert height(Range(0, 10), "2.5") == 0.25
    assert sweep_plot._ticks(Range(1, 3, is_int=True)) == ["1", "2", "3"]


def orange_rows(path: Path) -> np.ndarray:
    """Rows of the picture that the thick line of the best one crosses near the right end."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    is_orange = (np.abs(pixels - (0xD5, 0x5E, 0x00)).sum(-1) < 40)[:, int(pixels.shape[1] * 0.8) :]
    return np.flatnonzero(is_orange.any(1))


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("loss", -1)])
def test_the_best_line_ends_on_top(tmp_path: Path, metric: str, sign: int) -> None:
    drawn = [line._replace(value=sign * line.value) for line in lines(12)]
    plot_parallel([line for line in drawn if line.is_finished], SPACE, metric, tmp_path / "parallel.png")
    with Image.open(tmp_path / "parallel.png") as picture:
        size = picture.size
    assert size[0] > 1000
    assert orange_rows(tmp_path / "parallel.png").min() < size[1] * 0.2


def test_one_trial_is_a_picture_too(tmp_path: Path) -> None:
    plot_parallel(lines(1), SPACE, "accuracy", tmp_path / "parallel.png")
    plot_importance({"lr": 1.0, "学习率": 0.0}, 4, tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 5_000
