"""analysis.png shows the metric that chose the best checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from warmstart.analysis.curves import draw_curves
from warmstart.run import layout


def test_curves_are_drawn_again_from_the_rows_alone(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy, ignore=shutil.ignore_patterns(layout.CURVES, "*.safetensors"))
    assert draw_curves(copy) == copy / layout.CURVES
    whole = Path(shutil.copytree(small_run, tmp_path / "whole"))
    assert (copy / layout.CURVES).read_bytes() == draw_curves(whole).read_bytes()
