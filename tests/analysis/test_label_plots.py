"""label_plots.py: a picture appears, without a warning, however many labels there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from warmstart.analysis import figures, label_plots


def _rows(num: int, support: int = 3) -> list[dict[str, object]]:
    return [
        {"name": f"label {k}", "ap": (k + 1) / num if support else None, "f1": 0.5, "support": support}
        for k in range(num)
    ]


@pytest.mark.parametrize("num", [1, 12, 80])
def test_a_bar_per_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(label_plots, "save", lambda figure, path, note: drawn.append(figure))
    label_plots.plot_labels([*_rows(num), *_rows(1, support=0)], tmp_path / "l.png")
    (axes,) = drawn[0].axes
    assert len(axes.patches) == min(num, 50)
    assert axes.get_title(loc="left").startswith(f"{num} labels")
    lowest = [label.get_text() for label in axes.get_yticklabels()][-1]
    assert lowest == "label 0" and ("lowest" in axes.get_title(loc="left")) == (num > 50)


def test_files_are_written(tmp_path: Path) -> None:
    label_plots.plot_labels(_rows(5), tmp_path / "l.png")
    label_plots.plot_labels(_rows(2, support=0), tmp_path / "none.png")
    assert min((tmp_path / name).stat().st_size for name in ("l.png", "none.png")) > 5000


def _scores(num: int, **first: object) -> list[dict[str, object]]:
    rows = [
        {"name": f"class {k}", "precision": 0.9, "recall": 0.5, "f1": (k + 1) / num, "support": 3}
        for k in range(num)
    ]
    return [{**rows[0], **first}, *rows[1:]]


@pytest.mark.parametrize("num", [2, 10, 100])
def test_a_bar_per_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(label_plots, "save", lambda figure, path, note: drawn.append(figure))
    absent = {"name": "absent", "precision": None, "recall": None, "f1": None, "support": 0}
    label_plots.plot_performance([*_scores(num, precision=None), absent], tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert len(axes.patches) == min(num, 50) and len(axes.lines) == 2
    assert axes.get_title(loc="left").startswith(f"{num} classes")
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "class 0"
    assert ("lowest" in axes.get_title(loc="left")) == (num > 50)


def test_nothing_predicted_is_drawn_as_such(tmp_path: Path) -> None:
    label_plots.plot_performance(_scores(1, f1=None, precision=None, recall=None), tmp_path / "none.png")
    label_plots.plot_performance(_scores(3, name="狗"), tmp_path / "chinese.png")
    assert min((tmp_path / name).stat().st_size for name in ("none.png", "chinese.png")) > 5000


def test_a_name_that_cannot_be_drawn_is_the_number_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best class is drawn first, and must not get the number 0 for that."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "CJK_FONTS", ())
    monkeypatch.setattr(label_plots, "save", lambda figure, path, note: drawn.append(figure))
    rows = [{**row, "name": name} for row, name in zip(_scores(3), ("a", "b", "狗"), strict=True)]
    label_plots.plot_performance(rows, tmp_path / "c.png")
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["#2", "b", "a"]
