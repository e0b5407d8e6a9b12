"""The picture of a multi-label evaluation: how well each label is ranked and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import BLUE, GREY, ORANGE, STYLE, drawable, save

MAX_LABELS = 50


def plot_labels(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar per label: its average precision, with the number of images that have it, and F1 at its threshold.

    `rows` are those of `MultiLabel.table`, labels without images left out; of more than 50 labels, those
    with the lowest average precision are shown.
    """
    known = [row for row in rows if row["ap"] is not None]
    shown = sorted(known, key=lambda row: -row["ap"])[-MAX_LABELS:]
    names, fonts, note = drawable([row["name"] for row in shown])
    with rc_context({**STYLE, "font.family": fonts, "axes.spines.left": False}):
        figure = Figure(figsize=(8.0, 1.6 + 0.32 * max(1, len(shown))), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(shown))
        axes.barh(
            places, [row["ap"] for row in shown], 0.66, color=BLUE, alpha=0.85, label="average precision"
        )
        axes.plot(
            [row["f1"] for row in shown],
            places,
            "o",
            color=ORANGE,
            clip_on=False,
            markersize=5,
            label="F1 at the threshold",
        )
        for place, row in enumerate(shown):
            axes.text(1.02, place, f"{row['support']}", va="center", fontsize=8, color=GREY)
        axes.text(1.02, -1.0, "images", va="center", fontsize=8, color=GREY)
        axes.set_yticks(places, names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -1.4))
        axes.grid(axis="x")
        mean = f"mAP {np.mean([row['ap'] for row in known]):.3f}" if known else "no image has a label"
        some = f" (the {len(shown)} of lowest average precision)" if len(shown) < len(known) else ""
        axes.set_title(f"{len(known)} labels{some}, {mean}")
        if shown:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
        save(figure, path, note)
