"""The picture of an evaluation of masks: how well each class is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import BLUE, GREY, ORANGE, STYLE, drawable, save

MAX_CLASSES = 50


def plot_classes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar per class: its IoU, with its F-score and its share of the pixels, the best first.

    `rows` are those of `Segmentation.table`, classes that are absent left out; of more than 50 classes, those of the
    lowest IoU are shown.
    """
    known = [row for row in rows if row["iou"] is not None]
    shown = sorted(known, key=lambda row: -row["iou"])[-MAX_CLASSES:]
    drawn, fonts, note = drawable([row["name"] for row in rows])  # numbers are those of the classes
    shown_as = dict(zip((row["name"] for row in rows), drawn, strict=True))
    names = [shown_as[row["name"]] for row in shown]
    total = max(1, sum(row["pixels"] for row in rows))
    with rc_context({**STYLE, "font.family": fonts, "axes.spines.left": False}):
        figure = Figure(figsize=(8.0, 1.6 + 0.32 * max(1, len(shown))), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(shown))
        axes.barh(places, [row["iou"] for row in shown], 0.62, color=BLUE, alpha=0.85, label="IoU")
        axes.plot([row["fscore"] for row in shown], places, "o", color=ORANGE, markersize=5, label="F-score")
        for place, row in enumerate(shown):
            axes.text(1.02, place, f"{row['pixels'] / total:.1%}", va="center", fontsize=8, color=GREY)
        axes.text(1.02, -0.9, "of the pixels", fontsize=8, color=GREY)
        axes.set_yticks(places, names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), xlabel="IoU, and F-score as a dot")
        axes.invert_yaxis()
        axes.grid(axis="x")
        absent = len(rows) - len(known)
        without = f" ({absent} absent)" if absent else ""
        mean = np.mean([row["iou"] for row in known]) if known else np.nan
        axes.set_title(f"{len(rows)} classes{without}, mean IoU {mean:.3f}", pad=18)
        save(figure, path, note)
