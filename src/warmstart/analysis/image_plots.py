"""Images side by side, with what was said about each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from warmstart.analysis.figures import STYLE, drawable, save

_NUM_COLUMNS = 4


def plot_images(
    images: Sequence[np.ndarray], captions: Sequence[tuple[str, str, float]], title: str, path: Path
) -> None:
    """A grid of images, each uint8 (H, W, 3), with its label above, and the other class with its score below."""
    names, fonts, note = drawable([name for label, other, _ in captions for name in (label, other)], 18)
    num_rows = -(-len(images) // _NUM_COLUMNS)
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(7.2, 0.6 + 2.1 * num_rows), layout="constrained")
        all_axes = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False).ravel()
        for axes in all_axes:
            axes.axis("off")
        for number, (axes, image) in enumerate(zip(all_axes, images, strict=False)):
            axes.imshow(image, interpolation="nearest")
            label, other, score = names[2 * number], names[2 * number + 1], captions[number][2]
            axes.set_title(
                f"{label}\n→ {other} {score:.2f}", fontsize=8, fontweight="normal", pad=3, parse_math=False
            )
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        save(figure, path, note)
