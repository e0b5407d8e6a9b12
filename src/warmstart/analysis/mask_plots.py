"""The pictures of an evaluation of masks: how well each class is found, and a few images beside their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from warmstart.analysis.figures import BASE_FONT, BLUE, GREY, ORANGE, STYLE, drawable, save
from warmstart.analysis.overlays import colours

MAX_CLASSES = 50


@dataclass(frozen=True, eq=False)
class Example:
    """One image as the model saw it: uint8 (h, w, C), and its masks (h, w)."""

    id: str
    image: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    accuracy: float  # share of its valid pixels that are right


def plot_classes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar per class: its IoU, with its F-score and its share of the pixels, the best first.

    `rows` are those of `Segmentation.table`, classes that are absent left out; of more than 50 classes, those of the
    lowest IoU are shown.
    """
    known = [row for row in rows if row["iou"] is not None]
    shown = sorted(known, key=lambda row: -row["iou"])[-MAX_CLASSES:]
    names, fonts, note = drawable([row["name"] for row in shown])
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


def plot_examples(
    examples: Sequence[Example], classes: Sequence[str], ignore: int | None, path: Path
) -> None:
    """A row per example: the image, its mask, and what the model says; where pixels are ignored, both are grey."""
    names, fonts, note = drawable(classes)
    palette = colours(len(classes))
    height, width = examples[0].image.shape[:2]
    row_height = 2.6 * height / width + 0.35
    seen = np.unique(np.concatenate([np.unique(m) for e in examples for m in (e.target, e.predicted)]))
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(8.0, 1.2 + row_height * len(examples)), layout="constrained")
        all_axes = figure.subplots(len(examples), 3, squeeze=False)
        for row, example in zip(all_axes, examples, strict=True):
            is_ignored = example.target == ignore
            pictures = (
                example.image if example.image.shape[2] == 3 else example.image[..., 0],
                _painted(example.target, palette, is_ignored),
                _painted(example.predicted, palette, is_ignored),
            )
            for axes, picture in zip(row, pictures, strict=True):
                axes.imshow(picture, cmap="gray", interpolation="nearest")
                axes.set_axis_off()
            label, family, _ = drawable([example.id])
            row[0].set_title(label[0], fontsize=8, weight="normal", family=family, parse_math=False)
            row[2].set_title(f"{example.accuracy:.1%} of the pixels right", fontsize=8, weight="normal")
        patches = [
            Patch(color=palette[number] / 255, label=names[number])
            for number in seen.tolist()
            if number < len(names)
        ]
        legend = figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.suptitle(
            "image, mask, prediction", x=0.01, ha="left", fontsize=11, weight="bold", family=[BASE_FONT]
        )
        save(figure, path, note)


def _painted(mask: np.ndarray, palette: np.ndarray, is_ignored: np.ndarray) -> np.ndarray:
    picture = palette[np.minimum(mask, len(palette) - 1)]
    picture[is_ignored] = 190
    return picture
