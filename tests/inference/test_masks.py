"""Masks of whole images: every pixel is seen, and a mask lies on its image, whatever the size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from warmstart.inference.inputs import InputBuffer
from warmstart.inference.masks import Looks, predict_mask
from warmstart.records import Preprocessing

PIXELS = Preprocessing((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop_pct=1.0)
RED, GREEN, BLUE = range(3)


class Colours(nn.Module):
    """Says of every pixel which channel is strongest, at a quarter of the size as many decoders do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-2:] == (32, 32), "only ever windows of the model's size"
        return nn.functional.avg_pool2d(images, 4) * 50


class Sides(nn.Module):
    """Class 0 on the left half of the window, 1 on the right: what a left and a right eye are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        left = (torch.arange(width) < width // 2).float().expand(len(images), height, width)
        return torch.stack((left, 1 - left), 1) * 10


def quarters(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of four fields, and its mask."""
    mask = np.zeros((height, width), np.int64)
    mask[: height // 2, width // 2 :] = GREEN
    mask[height // 2 :, : width // 2] = BLUE
    return np.eye(3, dtype=np.uint8)[mask] * 255, mask


def predict(module: nn.Module, image: np.ndarray, looks: Looks | None = None) -> np.ndarray:
    return predict_mask(
        module, image, PIXELS, InputBuffer(PIXELS, torch.device("cpu"), False), looks or Looks()
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 128), (200, 70), (16, 16), (333, 517), (33, 32)])
@pytest.mark.parametrize("looks", [Looks(), Looks(scales=(0.5, 1.0, 1.5)), Looks(mirrored=(0, 1, 2))])
def test_mask_lies_on_its_image(size: tuple[int, int], looks: Looks) -> None:
    image, mask = quarters(*size)
    found = predict(Colours(), image, looks)
    assert found.shape == size
    assert found.dtype == np.int64
    # Wrong pixels lie along the two borders, as wide as what one answer of the model stands for.
    answer = 4 * max(size) / 32 * max(1, 1 / min(looks.scales))
    rows, columns = np.nonzero(found != mask)
    distance = np.minimum(abs(rows - size[0] // 2), abs(columns - size[1] // 2))
    assert distance.max(initial=0) <= answer
    assert (found == mask).mean() > 0.6


def test_left_and_right_change_places_in_a_mirror_image() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    plain = predict(Sides(), image)
    assert (plain[:, :16] == 0).all() and (plain[:, 16:] == 1).all()
    assert (predict(Sides(), image, Looks(mirrored=(1, 0))) == plain).all()


def test_looks_are_averaged() -> None:
    """Without the swap the mirror image contradicts, and both classes are equally likely everywhere."""
    image = np.zeros((32, 32, 3), np.uint8)
    assert (predict(Sides(), image, Looks(mirrored=(0, 1))) == 0).all()


def test_grey_images_are_taken_as_colour() -> None:
    assert (predict(Colours(), np.full((40, 40, 1), 255, np.uint8)) == 0).all()
