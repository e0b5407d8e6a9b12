"""colour.py against torchvision's functions, one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F

from warmstart.data.colour import blur, colour_maps, recolour


def narrow(low: float = 0.35, high: float = 0.55) -> np.ndarray:
    """Pixels (h, w, 3) in [0, 1] that no factor below takes out of it."""
    return np.random.default_rng(0).uniform(low, high, (12, 10, 3))


def in_sequence(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
    return F.adjust_saturation(image, saturation).permute(1, 2, 0).numpy()


FACTORS = [(1, 1, 1), (1.3, 1, 1), (1, 0.4, 1), (1, 1, 0), (0.8, 1.5, 1.4), (1.2, 0.5, 0.3), (0.2, 1.3, 0.9)]


@pytest.mark.parametrize("factors", FACTORS)
def test_one_map_is_torchvisions_sequence(factors):
    pixels = narrow()
    (matrix,), (share,) = colour_maps(np.array([[*factors, 0.0]]))
    luma = pixels.mean(axis=(0, 1)) @ (0.299, 0.587, 0.114)
    found = pixels @ matrix.T + share * luma
    assert np.abs(found - in_sequence(pixels, *factors)).max() < 2e-4  # torchvision's luma adds up to .9999


@pytest.mark.parametrize("factors", FACTORS)
def test_on_bytes_it_is_the_same_to_rounding(factors):
    pixels = np.rint(narrow() * 255).astype(np.uint8)
    (matrix,), (share,) = colour_maps(np.array([[*factors, 0.0]]))
    found = recolour(pixels, matrix, share)
    assert found.dtype == np.uint8 and found.shape == pixels.shape
    assert np.abs(found - 255 * in_sequence(pixels / 255, *factors)).max() <= 1.1


def test_bytes_saturate():
    pixels = np.full((4, 4, 3), (250, 128, 3), dtype=np.uint8)
    (matrix,), (share,) = colour_maps(np.array([[1.0, 1.0, 2.0, 0.0]]))
    luma = 0.299 * 250 + 0.587 * 128 + 0.114 * 3
    assert recolour(pixels, matrix, share)[0, 0].tolist() == [255, round(256 - luma), 0]


def hue(pixels: np.ndarray, turns: float) -> np.ndarray:
    (matrix,), (share,) = colour_maps(np.array([[1.0, 1.0, 1.0, turns]]))
    assert share == 0
    return np.asarray(pixels @ matrix.T)


def test_hue_turns_the_chroma_and_keeps_the_luma():
    pixels = narrow()
    for turns in (-0.4, 0.1, 0.5):
        assert hue(pixels, turns) @ (0.299, 0.587, 0.114) == pytest.approx(pixels @ (0.299, 0.587, 0.114))
        assert hue(np.full(3, 0.7), turns) == pytest.approx(np.full(3, 0.7))
        assert hue(hue(pixels, turns), -turns) == pytest.approx(pixels)
    assert hue(pixels, 1) == pytest.approx(pixels)
    assert hue(hue(pixels, 0.2), 0.1) == pytest.approx(hue(pixels, 0.3))


@pytest.mark.parametrize("turns", [-1 / 3, 1 / 3])
def test_hue_turns_the_way_of_hsv(turns):
    for colour in np.eye(3) * 0.4 + 0.3:
        shifted = F.adjust_hue(torch.from_numpy(colour).view(3, 1, 1), turns).flatten()
        assert hue(colour, turns).argmax() == shifted.argmax()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_images_have_brightness_and_contrast_only(channels):
    pixels = np.random.default_rng(0).integers(60, 120, (9, 8, channels), dtype=np.uint8)
    before = pixels.copy()
    (matrix,), (share,) = colour_maps(np.array([[1.2, 0.5, 0.0, 0.3]]))
    expected = 1.2 * (0.5 * pixels + 0.5 * pixels.mean())
    assert np.abs(recolour(pixels, matrix, share) - expected).max() <= 0.51
    assert (pixels == before).all()
    (bright,), (none,) = colour_maps(np.array([[4.0, 1.0, 1.0, 0.0]]))
    assert (recolour(pixels, bright, none) == np.minimum(255, 4 * pixels.astype(int))).all()


def test_grey_pictures_in_rgb_stay_grey():
    grey = np.random.default_rng(0).integers(0, 256, (9, 8, 1), dtype=np.uint8).repeat(3, axis=2)
    (matrix,), (share,) = colour_maps(np.array([[0.9, 0.8, 1.7, 0.4]]))
    assert np.ptp(recolour(grey, matrix, share).astype(int), axis=2).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "sigma"), [((224, 300), 1.7), ((448, 448), 0.8), ((40, 32), 0.1)])
def test_blur_is_gaussian_with_sigma_for_224_pixels(size, sigma, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    scaled = sigma * min(size) / 224
    kernel = 2 * int(4 * scaled) + 1
    image = torch.from_numpy(pixels).permute(2, 0, 1).double()
    expected = F.gaussian_blur(image, [kernel, kernel], [scaled, scaled]).permute(1, 2, 0).numpy()
    found = blur(pixels, sigma)
    assert found.shape == pixels.shape and np.abs(found - expected).max() <= 3
