"""blend.png: the metric over alpha, on the run's own data and on retained data, with the choice marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import BASE_FONT, BLUE, GREY, ORANGE, STYLE, save


def plot_blend(points: Sequence[dict[str, Any]], chosen: int, metric: str, path: Path) -> None:
    """`points` have name, alpha (None: an average), val and retained (None: no such data), from start to tuned."""
    has_alpha = all(point["alpha"] is not None for point in points)
    places = np.array([point["alpha"] if has_alpha else place for place, point in enumerate(points)], float)
    with rc_context({**STYLE, "font.family": [BASE_FONT]}):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        lines = {"val": (BLUE, "val of the tuned run"), "retained": (ORANGE, "retained data")}
        for name, (colour, label) in lines.items():
            values = np.array([np.nan if point[name] is None else point[name] for point in points], float)
            if np.isfinite(values).any():
                axes.plot(places, values, "o-", color=colour, label=label, markersize=4)
                axes.plot(places[chosen], values[chosen], "*", color="black", markersize=12, zorder=5)
        axes.axvline(places[chosen], color=GREY, linestyle=":", linewidth=1.2)
        axes.set_ylabel(metric.replace("_", " "))
        axes.set_title(f"Chosen: {'alpha ' if has_alpha else ''}{points[chosen]['name']}")
        if has_alpha:
            axes.set_xlabel("alpha: 0 is the start, 1 the tuned model")
        else:
            axes.set_xticks(places, [point["name"] for point in points])
        axes.grid(axis="y")
        axes.legend(loc="best")
        save(figure, path)
