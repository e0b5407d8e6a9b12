"""Figures of a run, as PNG files. Shapes: N samples, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from warmstart import stats
from warmstart.analysis.figures import BASE_FONT, BLUE, GREEN, GREY, ORANGE, PALE, SKY, STYLE, drawable, save

Rows = Sequence[Mapping[str, Any]]
Cases = Sequence[tuple[str, Sequence[float]]]  # label, values over seeds

_WORDS = {"lr": "learning rate", "miou": "mIoU", "map": "mAP"}
MAX_LABEL_LENGTH = 70  # characters of a case
MAX_COUNTED_CLASSES, MAX_NAMED_CLASSES, MAX_CELLS, NUM_LISTED_CONFUSIONS = 20, 50, 300, 12


def plot_confusion(matrix: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Confusion matrix (K, K), rows are targets; colour is the share of the row.

    Up to 20 classes carry counts and up to 50 names; above 50, the most frequent confusions are listed.
    """
    num_classes = len(classes)
    assert matrix.shape == (num_classes, num_classes), f"{matrix.shape} for {num_classes} classes"
    names, fonts, note = drawable(classes)
    is_named = num_classes <= MAX_NAMED_CLASSES
    side = min(max(4.2, 1.6 + 0.5 * num_classes), 10.0) if is_named else 7.5  # inches
    with rc_context({**STYLE, "font.family": fonts, "axes.spines.right": True, "axes.spines.top": True}):
        figure = Figure(figsize=(side + (1.0 if is_named else 4.2), side), layout="compressed")
        if is_named:
            axes = figure.subplots()
        else:
            axes, listed = figure.subplots(1, 2, width_ratios=(7.5, 3.6))
            _list_confusions(listed, matrix, names)
        _draw_confusion(axes, matrix)
        _label_classes(axes, names if is_named else None)
        empty = np.count_nonzero(matrix.sum(axis=1) == 0)
        without = f" (grey: no samples of {empty})" if empty else ""
        accuracy = np.trace(matrix) / max(1, matrix.sum())
        axes.set_title(f"{num_classes} classes{without}, {matrix.sum()} samples, {accuracy:.1%} right")
        save(figure, path, note)


def _draw_confusion(axes: Axes, matrix: NDArray[np.int64]) -> None:
    """Colours by share of the row, a colour bar, and counts where there is room."""
    num_classes, is_counted = len(matrix), len(matrix) <= MAX_COUNTED_CLASSES
    support = matrix.sum(axis=1, keepdims=True)
    is_empty = np.broadcast_to(support == 0, matrix.shape)
    shares = np.ma.masked_where(is_empty, matrix / np.maximum(support, 1))
    block = -(-num_classes // MAX_CELLS)
    drawn, end = _largest_of_blocks(shares, block), -(-num_classes // block) * block - 0.5
    # Single errors among many classes are pale: the root makes a share of 1 % visible.
    norm = Normalize(0, 1) if is_counted else PowerNorm(0.5, 0, 1)
    colors = colormaps["Blues"].with_extremes(bad=PALE)
    image = axes.imshow(drawn, colors, norm, interpolation="nearest", extent=(-0.5, end, end, -0.5))
    axes.set(xlabel="predicted", ylabel="target", xlim=(-0.5, num_classes - 0.5))
    axes.set_ylim(num_classes - 0.5, -0.5)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02, format=PercentFormatter(1, decimals=0))
    of_block = f", largest of {block} x {block} cells" if block > 1 else ""
    bar.set_label(f"share of the target class{of_block}")
    bar.outline.set_visible(False)
    if not is_counted:
        return
    size = 10 if matrix.max() < 1000 and len(matrix) <= 12 else 8
    for (row, column), count in np.ndenumerate(matrix):
        is_dark = not is_empty[row, column] and shares[row, column] > 0.55
        color = "white" if is_dark else "#222222" if count else "#B0B0B0"
        # Inside of the axes, so it moves nothing in the layout.
        axes.text(
            column, row, str(count), ha="center", va="center", fontsize=size, color=color, in_layout=False
        )


def _largest_of_blocks(shares: Any, block: int) -> Any:
    """Cells smaller than a pixel would be averaged away, so the largest of each block stands for it."""
    size = -(-len(shares) // block)
    padded = np.ma.masked_all((size * block, size * block))
    padded[: len(shares), : len(shares)] = shares
    return padded.reshape(size, block, size, block).max(axis=(1, 3))


def _label_classes(axes: Axes, names: Sequence[str] | None) -> None:
    """Names at every row and column, or class numbers at round places."""
    if names is None:
        axes.locator_params(nbins=10, integer=True)
        return
    is_dense = len(names) > MAX_COUNTED_CLASSES
    size = 7 if is_dense else 9
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set_xticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    if max(map(len, names)) * len(names) > 80:
        rotation, height = (90, "center") if is_dense else (45, "top")
        for label in axes.get_xticklabels():
            label.set(rotation_mode="anchor", ha="right", rotation=rotation, va=height)


def _list_confusions(axes: Axes, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """The cells off the diagonal with the most samples, as text."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    axes.axis("off")
    axes.set_title("Most frequent confusions" if wrong.any() else "No confusions")
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_LISTED_CONFUSIONS]
    cells = [divmod(int(cell), len(names)) for cell in order if wrong.flat[cell]]
    for number, (target, predicted) in enumerate(cells):
        top = 1 - number / NUM_LISTED_CONFUSIONS
        text = f"{names[target]} ({target})\n   taken for {names[predicted]} ({predicted})"
        axes.text(0.0, top, str(wrong[target, predicted]), va="top", weight="bold", fontsize=9)
        axes.text(0.13, top, text, va="top", fontsize=9, parse_math=False, linespacing=1.35)


def plot_calibration(confidence: ArrayLike, correct: ArrayLike, path: Path) -> None:
    """Reliability diagram (Guo et al. 2017, figure 1): accuracy by confidence, and the samples per bin.

    `confidence` (N,) is the probability of the predicted class, `correct` (N,) whether it was right.
    """
    counts, confidences, hits = stats.calibration_bins(confidence, correct)
    width, filled = 1 / len(counts), counts > 0
    centres = ((np.arange(len(counts)) + 0.5) * width)[filled]
    accuracy, mean = hits[filled] / counts[filled], confidences[filled] / counts[filled]
    with rc_context({**STYLE, "font.family": [BASE_FONT]}):
        figure = Figure(figsize=(6.2, 6.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, height_ratios=(3.4, 1), sharex=True)
        top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
        top.bar(centres, accuracy, width * 0.92, color=BLUE, alpha=0.85, label="accuracy")
        top.vlines(mean, np.minimum(accuracy, mean), np.maximum(accuracy, mean), color=ORANGE, linewidth=1.5)
        top.plot(mean, mean, "o", color=ORANGE, markersize=5, label="mean confidence")
        top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        error = stats.expected_calibration_error(confidence, correct)
        gap = (hits.sum() - confidences.sum()) / counts.sum()
        word = "underconfident" if gap > 0 else "overconfident"
        top.set_title(f"Calibration error {error:.3f}, on average {abs(gap):.3f} {word}")
        top.legend(loc="upper left")
        for axes in (top, bottom):
            axes.grid(axis="y")
        bottom.bar(centres, counts[filled], width * 0.92, color=GREY)
        bottom.set(xlabel="confidence of the prediction", ylabel="samples")
        bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        figure.align_ylabels()
        save(figure, path)


def plot_training(
    train_rows: Rows, eval_rows: Rows, path: Path, metric: str = "accuracy", best_step: int | None = None
) -> None:
    """Validation metric, losses and learning rate over a run, with the best step marked.

    `train_rows` have step, epoch, loss, lr; `eval_rows` step, epoch, split (val, or train, measured like
    val) and metrics; what a row lacks leaves a gap. The axis is epochs where these tell all rows apart,
    else steps. `best_step` is the run's choice, which is not made again here.
    """
    series = {"running": train_rows}
    series |= {split: [row for row in eval_rows if row["split"] == split] for split in ("train", "val")}
    x_name = "epoch" if all(map(_epochs_rise, series.values())) else "step"
    wanted = dict.fromkeys((metric, "loss", "lr"))
    panels = [name for name in wanted if _has_values(series, name)] or [metric]
    best = next((row for row in series["val"] if row["step"] == best_step), None)
    with rc_context({**STYLE, "font.family": [BASE_FONT]}):
        figure = Figure(figsize=(8.0, 0.8 + 2.2 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, panel, series, x_name)
            if best is not None:
                axes.axvline(best[x_name], color=GREY, linestyle=":", linewidth=1.2)
        if best is not None and best.get(metric) is not None:
            all_axes[0].plot(best[x_name], best[metric], "*", color="black", markersize=11, zorder=5)
            where = f"step {best['step']}" + (f" (epoch {best['epoch']:g})" if x_name == "epoch" else "")
            word = _WORDS.get(metric, metric.replace("_", " "))
            title = f"Best val {word} {best[metric]:.4g} at {where}"
            all_axes[0].set_title("\n".join([title, *_gaps(series, metric, best["step"])]))
        all_axes[-1].set_xlabel(x_name)
        figure.align_ylabels()
        save(figure, path)


def _gaps(series: Mapping[str, Rows], metric: str, best_step: int) -> list[str]:
    """How far train is from val at the best step and at the end; nothing where only one of them was measured."""
    train, val = (
        {row["step"]: float(row[metric]) for row in series[split] if row.get(metric) is not None}
        for split in ("train", "val")
    )
    gaps = {step: train[step] - val[step] for step in val if step in train}
    if best_step not in gaps:
        return []
    return [f"train less val: {gaps[best_step]:+.3f} there, {gaps[max(gaps)]:+.3f} at the end"]


def _epochs_rise(rows: Rows) -> bool:
    return bool((np.diff(_column(rows, "epoch"), prepend=-1) > 0).all())  # a missing epoch compares False


def _has_values(series: Mapping[str, Rows], name: str) -> bool:
    return any(np.isfinite(_column(rows, name)).any() for rows in series.values())


def _column(rows: Rows, name: str) -> NDArray[np.float64]:
    values = [row.get(name) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _draw_panel(axes: Axes, panel: str, series: Mapping[str, Rows], x_name: str) -> None:
    """One quantity over the run; a series without any value of it is left out."""
    dot = {"marker": "o", "markersize": 4}
    looks: dict[str, dict[str, Any]] = {
        "running": {"color": BLUE, "linewidth": 1.0, "alpha": 0.5, "label": "train, running"},
        "train": {
            **dot,
            "color": BLUE,
            "linewidth": 1.4,
            "linestyle": "--",
            "label": "train, measured like val",
        },
        "val": {**dot, "color": ORANGE, "linewidth": 1.8, "label": "val"},
    }
    if panel == "lr":
        looks["running"] |= {"color": GREEN, "linewidth": 1.6, "alpha": 1.0}
    for name, look in looks.items():
        values = _column(series[name], panel)
        num = np.isfinite(values).sum()
        if num:
            axes.plot(_column(series[name], x_name), values, **(look | dot if num == 1 else look))
    axes.set_ylabel(_WORDS.get(panel, panel.replace("_", " ")))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    axes.grid(axis="y")
    if panel != "lr" and axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def plot_story(cases: Cases, path: Path, title: str = "", quantity: str = "") -> None:
    """One horizontal bar per case: mean over seeds, each seed as a dot, spread; `quantity` names the axis."""
    assert cases, "a story needs a case"
    names, fonts, note = drawable([*(label for label, _ in cases), title, quantity], MAX_LABEL_LENGTH)
    farthest = max(max(values) for _, values in cases)
    digits = ".3f" if farthest < 100 else ".0f"
    key = f"bar: mean; dots: seeds; line: one standard deviation to each side\n{note}".strip()
    with rc_context({**STYLE, "font.family": fonts, "axes.spines.left": False}):
        figure = Figure(figsize=(8.0, 1.3 + 0.55 * len(cases)), layout="constrained")
        axes = figure.subplots()
        for row, (_, values) in enumerate(cases):
            mean, deviation = stats.spread(values)
            axes.barh(row, mean, 0.62, color=SKY)
            reach = float(np.nan_to_num(deviation))  # one seed has no deviation
            axes.plot([mean - reach, mean + reach], [row - 0.13] * 2, color="black", linewidth=2)
            heights = row + np.linspace(0.02, 0.2, len(values))  # apart, where seeds agree
            axes.plot(values, heights, "o", color=ORANGE, markersize=4.5, markeredgecolor="white")
            text = f"  {mean:{digits}}" + (f" ± {deviation:{digits}}" if len(values) > 1 else "")
            axes.text(max(mean + reach, *values), row, text, va="center", fontsize=9)
        axes.set_yticks(range(len(cases)), names[:-2], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.grid(axis="x")
        axes.set_title(names[-2], parse_math=False)
        axes.set_xlabel(names[-1], parse_math=False)
        save(figure, path, key)
