"""Pictures say what their words say: where zero is, and how large a change is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from warmstart.analysis.explain.cases import unlabelled_cases
from warmstart.analysis.explain.charts import filters_chart
from warmstart.analysis.explain.pictures import change_by_block, draw_tiles
from warmstart.analysis.explain.subject import unlabelled_subject
from warmstart.arguments import restore_model


def test_a_weight_of_zero_has_no_colour_and_the_signs_have_two() -> None:
    for dark in (False, True):
        seen = []
        for value in (0.0, 0.5, 1.0):
            png = draw_tiles([("", np.full((1, 3, 3), value, np.float32))], dark, 1, "RdBu_r")
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
            seen.append(pixels[pixels.shape[0] * 2 // 3, pixels.shape[1] // 2])
        below, zero, above = seen
        assert np.ptp(zero) <= 2 and zero.min() > 230
        assert below[2] > below[0] + 50 and above[0] > above[2] + 50


def test_words_of_filters_of_grey_images_fit_their_colours(small_run: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 90).save(tmp_path / "x.png")
    restored, _ = restore_model(str(small_run), "cpu", {})
    subject = unlabelled_subject(restored, [str(tmp_path / "x.png")], 0)
    case = unlabelled_cases(subject.task, subject.outputs, None)[0]
    words = filters_chart(subject, case).words
    assert restored.built.preprocessing.num_channels == 1
    assert "grey is zero" not in words and "white is zero, red above, blue below" in words


@pytest.mark.parametrize("debiased", [0.99, -0.2, float("nan")])
def test_a_small_change_looks_small(debiased: float) -> None:
    rows = [{"cka": 0.999, "cka_debiased": 0.998}, {"cka": 0.99, "cka_debiased": debiased}]
    axes = Figure().subplots()
    change_by_block(axes, rows, ("stem", "head"))
    low, high = axes.get_ylim()
    assert high == pytest.approx(1.03)
    assert low == pytest.approx((-0.2 if debiased < 0 else 0.0) - 0.03), "from 0, or from what is below it"
