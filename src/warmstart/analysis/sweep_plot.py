"""parallel.png and importance.png: what the trials of a sweep had in common with the best, and which setting told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warmstart.analysis.figures import BLUE, GREY, ORANGE, STYLE, drawable, save
from warmstart.config.schema import SELECTION_METRICS
from warmstart.config.sweep_values import Choice, Range, Space, written

_MOST_TICKS = 12  # of a list of values
_CURVE = 24  # points of a line between two axes


class Line(NamedTuple):
    """A trial: its values, the metric, and whether it came to its end."""

    values: Mapping[str, str]
    value: float
    is_finished: bool
    is_best: bool


def plot_parallel(lines: Sequence[Line], space: Space, metric: str, path: Path) -> None:
    """One line per trial over an axis for each setting, and the metric of val on the last; better is higher up."""
    names, fonts, note = drawable([*(name for name, _ in space), f"{metric} of val"])
    sign = SELECTION_METRICS[metric]
    scores = [line.value for line in lines]
    low, high = min(scores), max(scores)
    spread = (high - low) or 1.0
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(2.4 + 1.9 * len(space), 4.4), layout="constrained")
        axes = figure.subplots()
        order = sorted(lines, key=lambda line: (line.is_best, line.is_finished, sign * line.value))
        for line in order:
            share = (line.value - low) / spread
            height = share if sign > 0 else 1 - share
            heights = [_height(values, line.values[name]) for name, values in space]
            x, y = _curve([*heights, height])
            style = _style(line, height)
            axes.plot(x, y, **style)
        for number, (_, values) in enumerate(space):
            _axis(axes, number, [(_height(values, tick), tick) for tick in _ticks(values)])
        marks = [
            (share, low + spread * (share if sign > 0 else 1 - share)) for share in (0, 0.25, 0.5, 0.75, 1)
        ]
        _axis(axes, len(space), [(height, f"{value:.3f}") for height, value in marks])
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.set_xlim(-0.35, len(space) + 0.35)
        axes.set_ylim(-0.06, 1.06)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.set_title("What the trials had, and what came of it")
        stopped = "; dashed: stopped early" if any(not line.is_finished for line in lines) else ""
        save(figure, path, "; ".join(part for part in (f"orange: the best{stopped}", note) if part))


def _style(line: Line, height: float) -> dict[str, Any]:
    if line.is_best:
        return {"color": ORANGE, "linewidth": 3, "alpha": 1}
    if not line.is_finished:
        return {"color": GREY, "linewidth": 0.9, "alpha": 0.5, "linestyle": "--"}
    return {"color": colormaps["viridis"](0.9 * height), "linewidth": 1.4, "alpha": 0.85}


def plot_importance(importance: Mapping[str, float], num_trials: int, path: Path) -> None:
    """A bar per setting, the one that told most on top."""
    ranked = sorted(importance.items(), key=lambda pair: pair[1])
    names, fonts, note = drawable([name for name, _ in ranked])
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(6.4, 1.6 + 0.42 * len(ranked)), layout="constrained")
        axes = figure.subplots()
        shares = [100 * share for _, share in ranked]
        axes.barh(range(len(ranked)), shares, color=BLUE, height=0.6)
        for number, share in enumerate(shares):
            axes.annotate(f"{share:.0f} %", (share, number), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(ranked)), names)
        axes.set_xlim(0, max(1.15 * max(shares), 1))
        axes.set_xlabel("share of what tells good trials from the others, %")
        axes.set_title("Which setting mattered")
        axes.grid(axis="x")
        told = f"PED-ANOVA over {num_trials} finished trials" + (
            ": few, so a hint" if num_trials < 20 else ""
        )
        save(figure, path, "; ".join(part for part in (told, note) if part))


def _height(values: Choice | Range, value: str) -> float:
    """Where a value lies on its axis, 0 below, 1 on top; those of a list are equally far apart."""
    if isinstance(values, Choice):
        order = _ordered(values)
        return order.index(value) / (len(order) - 1)
    number, low, high = float(value), values.low, values.high
    if values.is_log:
        number, low, high = math.log(number), math.log(low), math.log(high)
    return (number - low) / (high - low)


def _ordered(values: Choice) -> list[str]:
    """Numbers by their size, words as they were given."""
    try:
        return sorted(values.values, key=float)
    except ValueError:
        return list(values.values)


def _ticks(values: Choice | Range) -> list[str]:
    if isinstance(values, Choice):
        order = _ordered(values)
        every = math.ceil(len(order) / _MOST_TICKS)
        return order[::every]
    between = np.geomspace if values.is_log else np.linspace
    ends = between(values.low, values.high, 5)
    numbers = [round(number) for number in ends] if values.is_int else [float(f"{n:.2g}") for n in ends]
    inside = (number for number in dict.fromkeys(numbers) if values.low <= number <= values.high)
    return [written(number) for number in inside]


def _axis(axes: Axes, place: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([place, place], [0, 1], color=GREY, linewidth=1, zorder=0)
    for height, text in ticks:
        axes.plot([place - 0.02, place + 0.02], [height, height], color=GREY, linewidth=1, zorder=0)
        axes.annotate(
            text,
            (place, height),
            (5, 3),
            textcoords="offset points",
            fontsize=8,
            color="#3A3A3A",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            zorder=9,
        )


def _curve(heights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth line through the heights, level at every axis, so that lines can be followed across it."""
    share = np.linspace(0, 1, _CURVE)
    ease = (1 - np.cos(np.pi * share)) / 2
    x = np.concatenate([place + share for place in range(len(heights) - 1)])
    y = np.concatenate([first + (last - first) * ease for first, last in pairwise(heights)])
    return x, y
