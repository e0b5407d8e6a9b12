"""The ROC curve against its definition, and its picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from warmstart.analysis.roc_plot import plot_roc, roc_curve


def test_the_area_is_the_chance_of_the_right_order() -> None:
    """Hanley & McNeil 1982: over all pairs, a tie counting half."""
    generator = np.random.default_rng(0)
    labels, scores = generator.random(60) < 0.4, generator.integers(0, 8, 60) / 8
    pairs = list(product(scores[labels], scores[~labels]))
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    found = roc_curve(labels, scores)
    assert found is not None and found[2] == pytest.approx(wanted)
    assert found[0][0] == found[1][0] == 0 and found[0][-1] == found[1][-1] == 1
    assert roc_curve(np.ones(3, bool), np.arange(3.0)) is None
    perfect = roc_curve(np.array([True, False]), np.array([0.9, 0.1]))
    assert perfect is not None and perfect[2] == 1


def test_pictures(tmp_path: Path) -> None:
    plot_roc(np.array([True, False, True]), np.array([0.9, 0.2, 0.4]), "open $ eye", tmp_path / "roc.png")
    plot_roc(np.array([True, True]), np.array([0.9, 0.2]), "open", tmp_path / "one.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000 and (tmp_path / "one.png").is_file()
