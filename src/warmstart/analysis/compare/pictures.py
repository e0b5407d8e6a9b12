"""Pictures of comparisons: metrics with intervals, classes, curves of several runs in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from warmstart.analysis.compare.differences import Difference
from warmstart.analysis.figures import BLUE, GREEN, GREY, ORANGE, STYLE, drawable, save

_MAX_NAMED = 10  # curves with a colour and a name of their own
_MAX_ROWS = 40


def plot_curves(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], metric: str, path: Path) -> None:
    """Val of each run over its epochs, a dot at the best; the first ten have names, all others are grey."""
    names, fonts, note = drawable([name for name, _ in curves])
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(8.0, 4.4), layout="constrained")
        axes = figure.subplots()
        colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
        for place, (_, points) in reversed(list(enumerate(curves))):
            if not points:
                continue
            is_named = place < _MAX_NAMED
            colour = colours[place] if is_named else GREY
            epochs, values = zip(*points, strict=True)
            label = names[place] if is_named else None
            width = 1.8 if is_named else 0.6
            marker = {"marker": "o", "markersize": 3} if is_named else {}
            axes.plot(epochs, values, color=colour, linewidth=width, label=label, **marker)  # type: ignore[arg-type]
        axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axes.set_title(f"{len(curves)} runs: {metric.replace('_', ' ')} of val")
        axes.grid(axis="y")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        save(figure, path, note)


def plot_differences(rows: Sequence[Difference], title: str, path: Path) -> None:
    """A horizontal interval per row: green is better, orange worse, grey holds 0."""
    shown = rows if len(rows) <= _MAX_ROWS else [*rows[: _MAX_ROWS // 2], *rows[-_MAX_ROWS // 2 :]]
    names, fonts, note = drawable([row.name for row in shown])
    if len(shown) < len(rows):
        note = f"{len(rows) - len(shown)} between them left out\n{note}".strip()
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(7.2, 1.2 + 0.28 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(shown):
            colour = GREEN if row.gains[0] > 0 else ORANGE if row.gains[1] < 0 else GREY
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
            axes.plot(row.difference, place, "o", color=colour, markersize=5)
        axes.axvline(0, color=BLUE, linestyle=":", linewidth=1.2)
        axes.set_yticks(range(len(shown)), names, parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel("B less A, with its interval")
        axes.set_title(title)
        save(figure, path, note)
