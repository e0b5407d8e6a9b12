"""Masks as files that people can look at: PNG whose pixels are the ids, and the image in its classes' colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from warmstart.data.decode import to_channels
from warmstart.run import writer

_NUM_COLOURS = 256
_OPACITY = 0.5


def colours(num: int) -> np.ndarray:
    """uint8 (num, 3): the colours of PASCAL VOC's masks, in which the bits of an id are spread over the channels.

    From its second colour on: the first is black, and would darken what a class 0 like sky lies on.
    """
    ids = np.arange(1, num + 1)
    channels = []
    for channel in range(3):
        bits = [((ids >> (3 * level + channel)) & 1) << (7 - level) for level in range(8)]
        channels.append(np.bitwise_or.reduce(bits))
    return np.stack(channels, axis=1).astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """int (H, W) as a PNG of the ids: with a palette, or grey of 16 bits where an id is above 255."""
    if mask.max(initial=0) < _NUM_COLOURS:
        picture = Image.fromarray(mask.astype(np.uint8), mode="P")
        picture.putpalette(colours(_NUM_COLOURS).tobytes())
    else:
        picture = Image.fromarray(mask.astype(np.uint16))
    _write(path, picture, "PNG")


def write_overlay(path: Path, image: np.ndarray, mask: np.ndarray, ignore: int | None = None) -> None:
    """`overlay`, as JPEG."""
    _write(path, Image.fromarray(overlay(image, mask, ignore)), "JPEG")


def overlay(image: np.ndarray, mask: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """uint8 (H, W, C) mixed half and half with the colour of each pixel's class, (H, W, 3); ignored pixels stay."""
    pixels = to_channels(image, 3)
    palette = colours(max(_NUM_COLOURS, int(mask.max(initial=0)) + 1))
    mixed = cv2.addWeighted(pixels, 1 - _OPACITY, palette[mask], _OPACITY, 0)
    if ignore is not None:
        mixed[mask == ignore] = pixels[mask == ignore]
    return mixed


def write_legend(path: Path, classes: Sequence[str]) -> None:
    """The colour of every class, one below the other."""
    from matplotlib.figure import Figure

    from warmstart.analysis.figures import drawable, save

    names, fonts, note = drawable(classes)
    figure = Figure(figsize=(3.2, 0.3 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 10), ylim=(len(names), 0))
    for row, (name, colour) in enumerate(zip(names, colours(len(names)) / 255, strict=True)):
        axes.fill_between((0, 0.9), row + 0.1, row + 0.9, color=colour)
        axes.text(1.2, row + 0.5, f"{row}  {name}", va="center", fontsize=9, family=fonts, parse_math=False)
    save(figure, path, note)


def _write(path: Path, picture: Image.Image, kind: str) -> None:
    content = io.BytesIO()
    picture.save(content, format=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_whole(path, content.getvalue())
