"""The pictures of an explanation: heat over images, filters, activation maps, embeddings, similarity of blocks.

Each chart is drawn for a light page and for a dark one. Shapes: N images, H x W pixels, h x w places of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from warmstart.analysis.explain.similarity import Similarity
from warmstart.analysis.figures import BASE_FONT, DARK, ORANGE, STYLE, drawable, encode
from warmstart.data.decode import to_channels

Image = NDArray[np.uint8]
Map = NDArray[np.float32]
SIDE = 224  # pixels of a picture's longer side
_STRENGTH = 0.7  # of the heat at its maximum
_QUIET = "#8C8C8C"  # seen on white and on dark
_MOST_NAMED, _MOST_COLOURS = 20, 10
_CELL, _GAP, _CAPTION, _WORD = 1.0, 0.06, 0.3, 0.16  # of a gallery, in widths of an image
_PER_ROW = 6  # pictures
_MOST_CELLS = 12  # blocks whose similarity is written into the cells


def shown(image: Image) -> Image:
    """uint8 (H, W, C) in colour and in the size of a picture; small images keep their pixels."""
    pixels = to_channels(image[..., :3] if image.shape[2] > 2 else image[..., :1], 3)
    size = _size(image.shape[:2])
    method = cv2.INTER_NEAREST if max(image.shape[:2]) < SIDE else cv2.INTER_AREA
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=method), np.uint8)


def _size(size: tuple[int, ...]) -> tuple[int, int]:
    scale = SIDE / max(size[:2])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def heated(picture: Image, heat: Map, region: NDArray[np.bool_] | None = None) -> Image:
    """A picture (H, W, 3) under a map (h, w) of any scale: bright is its maximum, and 0 leaves the picture.

    `region` (bool) is drawn as a white outline: the pixels whose class is explained.
    """
    height, width = picture.shape[:2]
    share = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1).astype(np.float32)
    fine = np.clip(cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    colour = colormaps["inferno"](fine)[..., :3] * 255
    opacity = _STRENGTH * fine[..., None]
    mixed = np.ascontiguousarray(((1 - opacity) * picture + opacity * colour).astype(np.uint8))
    if region is not None:
        cells = cv2.resize(region.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        outline, _ = cv2.findContours(cells, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mixed, outline, -1, (255, 255, 255), 1)
    return mixed


def draw_gallery(cards: Sequence[tuple[str, Sequence[tuple[str, Image]]]], title: str) -> bytes:
    """PNG of cards side by side: what is said of an image above it, and its pictures with a word below each."""
    captions, fonts, note = drawable([line for caption, _ in cards for line in caption.split("\n")], 40)
    words, other_fonts, other_note = drawable([name for _, views in cards for name, _ in views], 22)
    fonts, note = max(fonts, other_fonts, key=len), note or other_note
    lines, below = iter(captions), iter(words)
    tall = max(image.shape[0] / max(image.shape[:2]) for _, views in cards for _, image in views)
    row_height = _CAPTION + tall + _WORD
    corners, height = _corners([len(views) for _, views in cards], row_height)
    width = _PER_ROW * (_CELL + _GAP)
    with rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(1.45 * width, 1.45 * height + 0.5), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        for (left, start_row), (caption, views) in zip(corners, cards, strict=True):
            top = start_row + _CAPTION
            said = "\n".join(next(lines) for _ in caption.split("\n"))
            axes.text(left, top - 0.03, said, fontsize=8, va="bottom", fontweight="bold", parse_math=False)
            for place, (_, image) in enumerate(views):
                shares = [side / max(image.shape[:2]) * (_CELL - _GAP) for side in image.shape[:2]]
                start = left + place * _CELL
                axes.imshow(image, extent=(start, start + shares[1], top + shares[0], top))
                axes.text(start, top + shares[0] + 0.02, next(below), fontsize=7, va="top", parse_math=False)
        axes.set(xlim=(0, width), ylim=(height, 0))
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        return encode(figure, note)


def _corners(wide: Sequence[int], row_height: float) -> tuple[list[tuple[float, float]], float]:
    """The upper left corner of cards of so many pictures, in rows that are filled from the left; the height of all."""
    found, left, top = [], 0.0, 0.0
    for number in wide:
        needed = number * _CELL + 2 * _GAP
        if left + needed > _PER_ROW * (_CELL + _GAP) + 1e-9:
            left, top = 0.0, top + row_height
        found.append((left, top))
        left += needed
    return found, top + row_height


def draw_tiles(
    rows: Sequence[tuple[str, NDArray[np.float32]]], dark: bool, per_row: int, colours: str = "viridis"
) -> bytes:
    """PNG of small pictures in rows: each row a name and values in [0, 1], (n, h, w), drawn with the colour map, or in
    colour (n, h, w, 3)."""
    heights = [-(-len(tiles) // per_row) for _, tiles in rows]
    side = min(1.0, 7.6 / per_row)
    with rc_context(_style(dark, [BASE_FONT])):
        figure = Figure(figsize=(side * per_row + 0.4, side * sum(heights) + 0.24 * len(rows) + 0.35))
        figure.set_layout_engine("constrained")
        every = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, tiles) in zip(every, rows, strict=True):
            axes.axis("off")
            axes.set_aspect("equal")
            for number, tile in enumerate(tiles):
                row, column = divmod(number, per_row)
                high, wide = (0.92 * s / max(tile.shape[:2]) for s in tile.shape[:2])
                extent = (column, column + wide, row + high, row)
                axes.imshow(tile, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="nearest")
            axes.set(xlim=(0, per_row), ylim=(-(-len(tiles) // per_row), 0))
            axes.set_title(name, fontsize=9, fontweight="normal", pad=3)
        return encode(figure)


def draw_embedding(
    maps: Sequence[tuple[NDArray[np.float64], str]],
    numbers: NDArray[np.int64],
    classes: Sequence[str],
    quality: NDArray[np.float64],
    dark: bool,
) -> bytes:
    """PNG: a row for each projection ((N, 2), words), coloured by class and by what is right.

    `quality` (N,) is 1 for right and 0 for wrong, or between them a share of pixels.
    """
    names, fonts, note = drawable(classes, 18)
    with rc_context(_style(dark, fonts)):
        figure = Figure(figsize=(9.6, 4.0 * len(maps) + 0.3), layout="constrained")
        rows = figure.subplots(len(maps), 2, squeeze=False)
        for (points, words), (left, right) in zip(maps, rows, strict=True):
            _by_class(left, points, numbers, names)
            left.set_title(words, fontsize=9)
            _by_quality(right, points, quality)
            for axes in (left, right):
                axes.set(xticks=[], yticks=[])
                axes.margins(0.04)
        return encode(figure, note)


def _by_class(
    axes: Axes, points: NDArray[np.float64], numbers: NDArray[np.int64], names: Sequence[str]
) -> None:
    present = np.unique(numbers)
    colours = colormaps["tab10" if len(present) <= _MOST_COLOURS else "tab20"]
    many = len(present) > _MOST_NAMED
    for place, number in enumerate(present.tolist()):
        own = numbers == number
        colour = colormaps["hsv"](place / len(present)) if many else colours(place)
        axes.scatter(
            points[own, 0], points[own, 1], s=12, color=colour, label=names[number], linewidths=0, alpha=0.85
        )
    if many:
        axes.set_xlabel(f"{len(present)} classes: too many for a legend", fontsize=8)
    else:
        axes.legend(
            fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.4, handletextpad=0.1
        )


def _by_quality(axes: Axes, points: NDArray[np.float64], quality: NDArray[np.float64]) -> None:
    is_wrong, (x, y) = quality < 1, points.T
    if np.isin(quality, (0, 1)).all():
        axes.scatter(x[~is_wrong], y[~is_wrong], s=10, color=_QUIET, alpha=0.7, linewidths=0, label="right")
        axes.scatter(x[is_wrong], y[is_wrong], s=22, color=ORANGE, marker="X", linewidths=0, label="wrong")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1)
        axes.set_title(f"{is_wrong.sum()} of {len(quality)} wrong", fontsize=9)
        return
    drawn = axes.scatter(x, y, s=12, c=quality, cmap="viridis", linewidths=0)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of right pixels")
    axes.set_title("by image", fontsize=9)


def draw_similarity(found: Similarity, dark: bool) -> bytes:
    """PNG: CKA of every block with every block, and the equal ones from stem to end."""
    before, fonts, note = drawable(found.blocks, 20)
    after, _, _ = drawable(found.other_blocks, 20)
    rows: list[dict[str, Any]] = found.rows()
    side = min(max(3.4, 0.34 * len(before) + 1.6), 7.5)
    with rc_context(_style(dark, fonts)):
        figure = Figure(figsize=(2 * side + 1.6, side), layout="constrained")
        left, right = figure.subplots(1, 2)
        drawn = left.imshow(found.cka, cmap="magma", vmin=0, vmax=1)
        left.set_xticks(range(len(after)), after, rotation=90, fontsize=7)
        left.set_yticks(range(len(before)), before, fontsize=7)
        left.set(xlabel="tuned", ylabel="start")
        left.set_title(f"linear CKA, {found.num_samples} images", fontsize=10)
        if max(found.cka.shape) <= _MOST_CELLS:
            for (row, column), value in np.ndenumerate(found.cka):
                colour = "black" if value > 0.6 else "white"
                left.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(drawn, ax=left, shrink=0.75)
        change_by_block(right, rows, [before[found.blocks.index(row["block"])] for row in rows])
        return encode(figure, note)


def change_by_block(axes: Axes, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """CKA of every block with itself on an axis from 0 to 1, so that a small change looks like one."""
    lowest = 0.0
    for key, colour, label in (("cka", _QUIET, "CKA"), ("cka_debiased", ORANGE, "CKA, debiased")):
        values = [row[key] for row in rows]
        axes.plot(range(len(rows)), values, "o-", color=colour, markersize=4, label=label)
        lowest = min(lowest, *(value for value in (0.0, *values) if np.isfinite(value)))
    axes.set_xticks(range(len(rows)), names, rotation=90, fontsize=7)
    axes.set_ylim(lowest - 0.03, 1.03)
    axes.set_title("a block before and after", fontsize=10)
    axes.grid(axis="y")
    axes.legend(fontsize=8)


def _style(dark: bool, fonts: list[str]) -> dict[str, Any]:
    return {**STYLE, **(DARK if dark else {}), "font.family": fonts}
