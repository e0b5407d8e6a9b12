"""Images side by side, with what was said about each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import STYLE, drawable, save

_NUM_COLUMNS = 4
_SIDE, _ROW, _CAPTION = 0.94, 1.2, 0.2  # of an image, a row and the words above an image; a column is 1


def plot_images(
    images: Sequence[np.ndarray], captions: Sequence[tuple[str, str, float | None]], title: str, path: Path
) -> None:
    """A grid of images, each uint8 (H, W, 3), with its label above; below, the other class, with its score if any.

    All in one coordinate system: one for each image takes four times as long.
    """
    names, fonts, note = drawable([name for label, other, _ in captions for name in (label, other)], 18)
    num_rows = -(-len(images) // _NUM_COLUMNS)
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(7.2, 0.6 + 2.1 * num_rows), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        for number, image in enumerate(images):
            row, column = divmod(number, _NUM_COLUMNS)
            middle, top = column + 0.5, row * _ROW + _CAPTION
            height, width = (_SIDE * side / max(image.shape[:2]) for side in image.shape[:2])
            extent = (middle - width / 2, middle + width / 2, top + height, top)
            axes.imshow(image, interpolation="nearest", extent=extent)
            label, other, score = names[2 * number], names[2 * number + 1], captions[number][2]
            words = f"{label}\n→ {other}" + ("" if score is None else f" {score:.2f}")
            axes.text(column + (1 - _SIDE) / 2, top - 0.02, words, fontsize=8, va="bottom", parse_math=False)
        axes.set(xlim=(0, _NUM_COLUMNS), ylim=(num_rows * _ROW, 0))
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        save(figure, path, note)
