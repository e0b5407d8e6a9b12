"""Masks as files: another program reads the ids that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from warmstart.analysis.overlays import colours, write_legend, write_mask, write_overlay


def test_colours_are_those_of_pascal_voc() -> None:
    """Its numbers: 1 aeroplane, 2 bicycle, 8 cat, 20 television, 255 the border."""
    known = {1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {number: tuple(colours(255)[number - 1].tolist()) for number in known} == known
    assert len(np.unique(colours(256), axis=0)) == 256


def test_ids_survive(tmp_path: Path) -> None:
    small = np.arange(256).reshape(16, 16)
    write_mask(tmp_path / "a" / "small.png", small)
    with Image.open(tmp_path / "a" / "small.png") as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == small).all()
        assert picture.convert("RGB").getpixel((1, 0)) == (0, 128, 0)
    large = np.arange(1000).reshape(20, 50)
    write_mask(tmp_path / "large.png", large)
    with Image.open(tmp_path / "large.png") as picture:
        assert (np.asarray(picture) == large).all()


def test_overlay_mixes_image_and_colour(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.int64)
    mask[:8] = 1
    mask[:, 8:] = 255
    write_overlay(tmp_path / "x.jpg", np.full((16, 16, 1), 200, np.uint8), mask, ignore=255)
    with Image.open(tmp_path / "x.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert abs(pixels[2, 2] - (100, 164, 100)).max() < 12
    assert abs(pixels[12, 2] - (164, 100, 100)).max() < 12
    assert abs(pixels[2, 13] - (200, 200, 200)).max() < 12


def test_legend_is_a_picture(tmp_path: Path) -> None:
    write_legend(tmp_path / "legend.png", ["sky", "road", "天空"])
    with Image.open(tmp_path / "legend.png") as picture:
        assert picture.size[1] > 100
