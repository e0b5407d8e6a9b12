"""The receiver operating characteristic of a yes or no. Shapes: N samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import BLUE, GREY, STYLE, save


def roc_curve(is_positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """False and true positive rates from the highest threshold to the lowest, and the area below; None without both
    kinds of samples (bool (N,)).

    Samples of one score are one step: no order among them is better than another (Fawcett 2006, section 4).
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return None
    order = np.argsort(-scores, kind="stable")
    hits, last = is_positive[order], np.flatnonzero(np.diff(scores[order], append=np.nan))
    true = np.concatenate([[0], np.cumsum(hits)[last]]) / num_positive
    false = np.concatenate([[0], np.cumsum(~hits)[last]]) / num_negative
    return false, true, float((np.diff(false) * (true[1:] + true[:-1])).sum() / 2)


def plot_roc(is_positive: np.ndarray, scores: np.ndarray, positive: str, path: Path) -> None:
    found = roc_curve(is_positive, scores)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.0, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
        if found is None:
            axes.set_title("ROC: samples of one class only")
        else:
            axes.plot(found[0], found[1], color=BLUE)
            axes.set_title(f"ROC, area {found[2]:.4f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false positive rate")
        axes.set_ylabel(f"true positive rate ({positive})", parse_math=False)
        save(figure, path)
