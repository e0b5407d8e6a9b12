"""compression.png: what models answer right against what they cost, with the best at each cost joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import BASE_FONT, BLUE, GREY, ORANGE, STYLE, save


class Mark(NamedTuple):
    """A model in the picture: `costs` by the label of their axis, the metric with its 95 % interval."""

    name: str
    costs: dict[str, float]
    value: float
    low: float
    high: float


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The numbers of those than which none costs less and answers better, from the cheapest on."""
    order = sorted(range(len(costs)), key=lambda number: (costs[number], -values[number]))
    found: list[int] = []
    for number in order:
        if not found or values[number] > values[found[-1]]:
            found.append(number)
    return found


def plot_compression(marks: Sequence[Mark], chosen: int, metric: str, path: Path) -> None:
    """A panel per cost; the first mark is the original, `chosen` the result."""
    labels = list(marks[0].costs)
    with rc_context({**STYLE, "font.family": [BASE_FONT]}):
        figure = Figure(figsize=(4.2 * len(labels), 3.8), layout="constrained")
        panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
        values = [mark.value for mark in marks]
        for axes, label in zip(panels, labels, strict=True):
            costs = [mark.costs[label] for mark in marks]
            best = pareto(costs, values)
            axes.plot(
                [costs[n] for n in best], [values[n] for n in best], ":", color=GREY, linewidth=1.2, zorder=1
            )
            for number, (mark, cost) in enumerate(zip(marks, costs, strict=True)):
                colour = GREY if number == 0 else ORANGE if number == chosen else BLUE
                axes.plot([cost, cost], [mark.low, mark.high], color=colour, linewidth=1, alpha=0.6)
                axes.plot(cost, mark.value, "*" if number == chosen else "o", color=colour, markersize=8)
                place = (5, 5 + 8 * (number % 2))  # neighbours on different lines
                axes.annotate(
                    mark.name.removeprefix("round "),
                    (cost, mark.value),
                    place,
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
            axes.set_xlabel(label)
            axes.set_xlim(0, 1.2 * max(costs))
            axes.grid(axis="y")
        panels[0].set_ylabel(f"{metric} on val")
        panels[0].set_title(f"Chosen: {marks[chosen].name}")
        save(figure, path, "numbers: rounds; bars: 95 % intervals; dotted: nothing that is cheaper is better")
