"""sensitivity.png: what each block alone costs on val, over the share of its channels that is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from warmstart.analysis.figures import GREY, STYLE, drawable, save

_MARKS = "os^vD"


def plot_sensitivity(
    curves: Mapping[str, Sequence[float]], shares: Sequence[float], whole: float, metric: str, path: Path
) -> None:
    """`curves` are values of the metric by block, from stem to head, after removing each of `shares`; `whole` is that
    of the model as it is."""
    names, fonts, note = drawable(list(curves))
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.subplots()
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
        for number, (name, values) in enumerate(zip(names, curves.values(), strict=True)):
            mark = _MARKS[number % len(_MARKS)]
            axes.plot(
                (0, *shares), (whole, *values), f"{mark}-", color=colours[number], label=name, markersize=4
            )
        axes.axhline(whole, color=GREY, linestyle=":", linewidth=1.2)
        axes.set_xlabel("share of the block's channels that is gone, the least important first")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel(f"val {metric}, without recovery")
        axes.set_title("How much each block stands by itself")
        axes.grid(axis="y")
        columns = 1 + (len(names) - 1) // 14
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, ncols=columns)
        save(figure, path, note)
