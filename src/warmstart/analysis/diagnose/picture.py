"""A picture of a diagnosis: val and train over the epochs, the rate, and since when something went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warmstart.analysis.diagnose.findings import Diagnosis
from warmstart.analysis.diagnose.history import History
from warmstart.analysis.figures import BASE_FONT, BLUE, GREEN, GREY, ORANGE, STYLE, save


def plot_diagnosis(history: History, diagnosis: Diagnosis, path: Path) -> None:
    """The verdict is the title; a dotted line stands where a finding begins."""
    panels = [name for name in dict.fromkeys((history.metric, "loss")) if _has(history, name)]
    has_rate = history.peak_rate is not None
    with rc_context({**STYLE, "font.family": [BASE_FONT]}):
        figure = Figure(figsize=(8.0, 1.2 + 2.1 * (len(panels) + has_rate)), layout="constrained")
        all_axes = figure.subplots(max(1, len(panels) + has_rate), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(all_axes, panels, strict=False):
            _draw(axes, history, name)
        if has_rate:
            rates = [(row.epoch, row.lr) for row in history.rows if row.lr is not None]
            all_axes[-1].plot(*zip(*rates, strict=True), color=GREEN)
            all_axes[-1].set_ylabel("learning rate")
        for finding in diagnosis.findings:
            if finding.since is not None:
                for axes in all_axes:
                    axes.axvline(finding.since, color=GREY, linestyle=":", linewidth=1.4)
                all_axes[0].annotate(
                    finding.id, (finding.since, 1), xycoords=("data", "axes fraction"), fontsize=8
                )
        all_axes[0].set_title(diagnosis.verdict, wrap=True, parse_math=False)
        all_axes[-1].set_xlabel("epoch")
        figure.align_ylabels()
        save(figure, path)


def _has(history: History, name: str) -> bool:
    return bool(np.isfinite(history.of_val(name)).any())


def _draw(axes: Axes, history: History, name: str) -> None:
    points = (*(() if history.start is None else (history.start,)), *history.validations)
    lines = {"val": (ORANGE, "-", [p.val.get(name) for p in points])}
    lines["train, measured like val"] = (BLUE, "--", [p.train.get(name) for p in points])
    for label, (colour, style, values) in lines.items():
        drawn = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        if np.isfinite(drawn).any():
            axes.plot([p.epoch for p in points], drawn, f"o{style}", color=colour, label=label, markersize=4)
    if name == "loss" and history.means:
        axes.plot(*zip(*history.means, strict=True), color=BLUE, alpha=0.5, label="train, running")
    axes.set_ylabel(name.replace("_", " "))
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
