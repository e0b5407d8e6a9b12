"""Pictures with a row per label or class: how well each is ranked and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from warmstart.analysis.figures import BLUE, GREEN, GREY, ORANGE, STYLE, drawable, save

MAX_LABELS = 50
_MARKS = (("o", ORANGE), ("D", GREEN))
_BELOW_TICKS = 0.28  # inches


def plot_labels(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar per label: its average precision, with the number of images that have it, and F1 at its threshold.

    `rows` are those of `MultiLabel.table`, labels without images left out; of more than 50 labels, those
    with the lowest average precision are shown.
    """
    known = [row for row in rows if row["ap"] is not None]
    shown = sorted(known, key=lambda row: -row["ap"])[-MAX_LABELS:]
    mean = f"mAP {np.mean([row['ap'] for row in known]):.3f}" if known else "no image has a label"
    some = f" (the {len(shown)} of lowest average precision)" if len(shown) < len(known) else ""
    looks = {"ap": "average precision", "f1": "F1 at the threshold"}
    _draw(rows, shown, looks, f"{len(known)} labels{some}, {mean}", path)


def plot_performance(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar per class: its F1, with precision, recall and the number of its images; the best class first.

    `rows` are those of `Classification.table`, classes without images left out, and all where nothing was predicted; of
    more than 50 classes, those of the lowest F1 are shown.
    """
    known = [row for row in rows if row["f1"] is not None]
    shown = sorted(known, key=lambda row: -row["f1"])[-MAX_LABELS:]
    mean = f"macro F1 {np.mean([row['f1'] for row in known]):.3f}" if known else "nothing was predicted"
    some = f" (the {len(shown)} of lowest F1)" if len(shown) < len(known) else ""
    looks = {"f1": "F1", "precision": "precision", "recall": "recall"}
    _draw(rows, shown, looks, f"{len(known)} classes{some}, {mean}", path)


def _draw(
    every: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    looks: Mapping[str, str],
    title: str,
    path: Path,
) -> None:
    """A bar of the first of the `looks` (column -> its word) per row, marks of the others, and `support` beside it.

    A name that no font can draw is the number of its row in `every`, as in the other pictures.
    """
    (bar, bar_word), *marks = looks.items()
    drawn, fonts, note = drawable([row["name"] for row in every])
    shown_as = dict(zip((row["name"] for row in every), drawn, strict=True))
    names = [shown_as[row["name"]] for row in rows]
    with rc_context({**STYLE, "font.family": fonts, "axes.spines.left": False}):
        figure = Figure(figsize=(8.0, 1.6 + 0.32 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(rows))
        axes.barh(places, [row[bar] for row in rows], 0.66, color=BLUE, alpha=0.85, label=bar_word)
        for (column, word), (sign, color) in zip(marks, _MARKS, strict=False):
            values = [np.nan if row[column] is None else row[column] for row in rows]
            axes.plot(values, places, sign, color=color, clip_on=False, markersize=5, label=word)
        for place, row in enumerate(rows):
            axes.text(1.02, place, f"{row['support']}", va="center", fontsize=8, color=GREY)
        axes.text(1.02, -1.0, "images", va="center", fontsize=8, color=GREY)
        axes.set_yticks(places, names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -1.4))
        axes.grid(axis="x")
        axes.set_title(title)
        if rows:
            below = axes.transAxes + ScaledTranslation(0, -_BELOW_TICKS, figure.dpi_scale_trans)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=len(looks))
        save(figure, path, note)
