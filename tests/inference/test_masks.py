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


@pytest.mark.parametrize("size", [(60, 500), (500, 40), (1, 900), (900, 2)])
def test_no_end_of_a_ribbon_is_cut_off(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    along = int(size[1] > size[0])
    image[..., RED] = 255
    first = [slice(None), slice(None)]
    first[along] = slice(0, size[along] // 4)
    image[tuple(first)] = (0, 255, 0)
    found = predict(Colours(), image)
    wrong = found != image.argmax(2)
    assert wrong.mean() < 0.05, "only at the border of the two"
    assert (found == GREEN).mean() == pytest.approx(0.25, abs=0.05)


def test_an_image_of_the_models_size_is_taken_as_in_training() -> None:
    values = Preprocessing((32, 32), (0.0,) * 3, (1.0,) * 3, crop_pct=0.5)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    inputs = InputBuffer(values, torch.device("cpu"), False)
    found = predict_mask(Colours(), image, values, inputs, Looks(), native=True)
    scores = nn.functional.interpolate(Colours()(inputs(image[None])), (32, 32), mode="bilinear")
    assert (found == scores[0].softmax(0).argmax(0).numpy()).mean() > 0.999
    assert (predict_mask(Colours(), image, values, inputs, Looks()) != found).any()


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_windows_at_once(at_once: int) -> None:
    sizes: list[int] = []
    module = Colours()
    module.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    image, _ = quarters(64, 256)
    found = predict(module, image, Looks(at_once=at_once))
    assert max(sizes) == at_once and sum(sizes) > at_once
    assert (found == predict(Colours(), image)).all()
