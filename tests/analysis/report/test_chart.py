"""Curves as drawings: round ticks, places inside the plot, gaps, logarithms, stages."""

from __future__ import annotations

import math
import re

import pytest

from warmstart.analysis.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    chart,
    ticks,
    told,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.61, 0.88, [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]),
        (3.0, 97.0, [0, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_constant_has_ticks_too() -> None:
    for value in (0.0, 0.5, -3.0):
        found = ticks(value, value)
        assert found[0] <= value <= found[-1] and len(found) < 10


def test_short_numbers() -> None:
    assert [told(v) for v in (0.5, 1e-4, 250000.0, 0.0, 12.0)] == ["0.5", "1e-4", "2.5e5", "0", "12"]


def drawn(*points: tuple[float, float | None], **options: object):
    found = chart("t", "epoch", [Series("val", "val", points)], **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_lines_stay_inside_the_plot_and_more_is_higher() -> None:
    found = drawn((0, 0.2), (1, 0.6), (2, 0.9))
    places = [(x, y) for x, y, _ in found.lines[0].dots]
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_what_is_no_number_is_a_gap() -> None:
    found = drawn((0, 1.0), (1, math.nan), (2, 2.0), (3, None), (4, 3.0), (5, 2.5))
    assert re.findall("[ML]", found.lines[0].path) == ["M", "M", "M", "L"]
    assert chart("t", "x", [Series("val", "val", [(0, None), (1, math.inf)])]) is None


def test_a_loss_that_exploded_has_a_logarithmic_axis_that_says_so() -> None:
    found = drawn((0, 0.5), (1, 3000.0), (2, 1.0), log_words="log")
    assert found.note == "log" and [text for _, text in found.y_ticks][:2] == ["0.1", "1"]
    gaps = [a[0] - b[0] for a, b in zip(found.y_ticks, found.y_ticks[1:], strict=False)]
    assert max(gaps) - min(gaps) < 0.2, "decades are equally far apart"
    assert drawn((0, 0.5), (1, 1.0), log_words="log").note == ""


def test_thousands_of_points_are_averaged() -> None:
    found = drawn(*((x, float(x % 2)) for x in range(10_000)))
    line = found.lines[0]
    assert line.path.count("L") < 300 and not line.dots
    heights = {float(pair.split()[1]) for pair in re.findall(r"[ML]([^ML]+)", line.path)}
    assert max(heights) - min(heights) < 10, "the mean of 0 and 1, everywhere"


def test_stages_share_the_width() -> None:
    found = drawn((0, 1.0), (4, 2.0), stages=[(0, "0"), (1, "1"), (3, "2")])
    assert [word for _, _, word, _ in found.bands] == ["0", "1", "2"]
    assert sum(width for _, width, _, _ in found.bands) == pytest.approx(WIDTH - LEFT - RIGHT, abs=0.3)


def test_the_best_step_lies_in_the_drawing_though_neighbours_are_averaged() -> None:
    points = [(float(x), 9.0 if x == 999 else 0.5) for x in range(1000)]
    found = drawn(*points, best=(999.0, 9.0, "9.0"))
    assert found.best is not None and found.best[1] is not None
    assert LEFT <= found.best[0] <= WIDTH - RIGHT and TOP <= found.best[1] <= HEIGHT - BOTTOM


def test_a_best_step_without_a_number_has_no_star() -> None:
    found = drawn((0, 1.0), (1, math.nan), best=(1.0, math.nan, ""))
    assert found.best is not None and found.best[1] is None
