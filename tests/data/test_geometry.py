"""geometry.py and the ranges of augment.py against torchvision: its samplers and its resampling."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import (
    ColorJitter,
    InterpolationMode,
    RandomAffine,
    RandomErasing,
    RandomResizedCrop,
    RandomRotation,
)
from torchvision.transforms import functional as F

from warmstart.data.augment import Augment, Parameters
from warmstart.data.geometry import evaluation_corner, lies_inside

NUM = 2000
OUT = (64, 64)


def keys(num: int = NUM) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2**64, num, dtype=np.uint64)


def ours(augment: Augment, size: tuple[int, int], out: tuple[int, int] = OUT, num: int = NUM) -> Parameters:
    return augment.parameters(keys(num), 0, np.tile(size, (num, 1)), out, out)


def theirs(draw, num: int = NUM) -> np.ndarray:
    """(num, k) of torchvision's sampler."""
    torch.manual_seed(0)
    return np.array([np.ravel(draw()) for _ in range(num)], dtype=float)


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    for column in range(theirs.shape[1]):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01, column


def described(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (top, left, height, width) with their area and ratio."""
    area = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1])
    return np.column_stack((boxes, area, np.log(boxes[:, 3] / boxes[:, 2])))


@pytest.mark.parametrize(("size", "smallest"), [((120, 160), 0.6), ((146, 146), 0.08), ((64, 300), 0.35)])
def test_crops_are_those_of_random_resized_crop(size, smallest):
    """The last size is so wide that the fallback is taken often."""
    image, scale, ratio = torch.empty(1, *size, device="meta"), [smallest, 1.0], [3 / 4, 4 / 3]
    expected = theirs(lambda: RandomResizedCrop.get_params(image, scale, ratio))
    found = ours(Augment(crop_scale=smallest), size).boxes
    assert_same_distribution(described(found, size), described(expected, size))
    if size == (64, 300):
        fallback = [0, (300 - 85) // 2, 64, 85]
        shares = [(boxes == fallback).all(axis=1).mean() for boxes in (found, expected)]
        assert shares[0] > 0.1 and abs(shares[0] - shares[1]) < 0.05


@pytest.mark.parametrize("size", [(30, 200), (200, 30)])
def test_a_ribbon_is_cropped_in_its_middle(size):
    image = torch.empty(1, *size, device="meta")
    expected = RandomResizedCrop.get_params(image, [0.95, 1.0], [3 / 4, 4 / 3])
    assert (ours(Augment(crop_scale=0.95), size, num=20).boxes == expected).all()


def test_erased_boxes_are_those_of_random_erasing():
    image = torch.empty(3, 96, 64)
    draws = theirs(lambda: RandomErasing.get_params(image, (0.02, 1 / 3), (0.3, 3.3), [0.0])[:4])
    found = ours(Augment(erase=1.0), (96, 64), (96, 64)).erased
    assert_same_distribution(described(found, (96, 64)), described(draws, (96, 64)))


def test_angles_and_shears_are_those_of_torchvision():
    found = ours(Augment(rotation=25, shear=15), OUT)
    assert_same_distribution(found.degrees[:, None], theirs(lambda: RandomRotation.get_params([-25.0, 25.0])))
    expected = theirs(lambda: RandomAffine.get_params([0, 0], None, None, [-15.0, 15.0], [64, 64])[3])
    assert_same_distribution(np.degrees(np.arctan(found.shear))[:, ::-1], expected)


@pytest.mark.parametrize("amount", [0.3, 1.5])
def test_factors_are_those_of_color_jitter(amount):
    jitter = ColorJitter(amount, amount, amount, 0.2)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    expected = theirs(lambda: ColorJitter.get_params(*map(list, ranges))[1:])
    found = ours(Augment(brightness=amount, contrast=amount, saturation=amount, hue=0.2), OUT).colour
    assert_same_distribution(found, expected)


def ramps(size: tuple[int, int]) -> np.ndarray:
    """Channels that rise with x and y, which any number of linear interpolations leaves exact."""
    y, x = np.indices(size)
    return np.stack((x, y, 240 - x - y), axis=-1).astype(np.uint8)


def by_torchvision(image: np.ndarray, drawn: Parameters, row: int) -> np.ndarray:
    """The same in three steps: affine about the centre, resized crop, flip; float64 (h, w, C)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).double()
    shear = np.degrees(np.arctan(drawn.shear[row]))
    turned = F.affine(
        pixels,
        angle=-drawn.degrees[row],
        translate=[0, 0],
        scale=drawn.scale[row],
        shear=[-shear[1], shear[0]],
        interpolation=InterpolationMode.BILINEAR,
        center=[drawn.centres[row, 1] + 0.5, drawn.centres[row, 0] + 0.5],
    )
    top, left, height, width = drawn.boxes[row].astype(int).tolist()
    cropped = F.resized_crop(turned, top, left, height, width, list(OUT), antialias=False)
    return (F.hflip(cropped) if drawn.flipped[row] else cropped).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "ranges",
    [
        {"crop_scale": 0.3, "flip": 0.5},
        {"crop_scale": 0.3, "flip": 0.5, "rotation": 40},
        {"crop_scale": 0.3, "flip": 0.5, "rotation": 40, "zoom": 0.3, "shear": 30},
        {"rotation": 90, "shear": 30},
    ],
)
def test_one_warp_is_torchvisions_in_sequence(ranges):
    """To a pixel's rounding; but torchvision's crop is clamped at its own edges, not at the image's."""
    image, num = ramps((100, 140)), 40
    augment = Augment(**ranges, seed=5)
    drawn = ours(augment, image.shape[:2], num=num)
    found = augment([image] * num, keys(num), 0, OUT, OUT)
    for row in range(num):
        is_seen = by_torchvision(np.full_like(image, 255), drawn, row) > 254.9
        difference = np.abs(by_torchvision(image, drawn, row) - found[row])
        difference[~is_seen] = 0
        assert difference[2:-2, 2:-2].max() <= 0.6 and difference.max() <= 2, row
        assert is_seen.mean() > 0.2
        if "rotation" in ranges:  # black is where torchvision has it
            light = augment([np.full_like(image, 255)], keys(num)[[row]], 0, OUT, OUT)[0]
            assert ((light == 255) == is_seen).mean() > 0.95


def test_a_smooth_image_is_resampled_as_by_affine_grid():
    noise = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    augment = Augment(rotation=90, shear=30, zoom=0.3, seed=5)
    drawn = ours(augment, (100, 140), num=10)
    found = augment([image] * 10, keys(10), 0, OUT, OUT)
    for row in range(10):
        is_seen = by_torchvision(np.full_like(image, 255), drawn, row) > 254.9
        assert np.abs(by_torchvision(image, drawn, row) - found[row])[is_seen].max() <= 1


def test_a_window_of_whole_pixels_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    boxes = Augment(crop_scale=0.3, flip=0.5)
    drawn = ours(boxes, (50, 70), num=60)
    for row, (top, left, height, width) in enumerate(drawn.boxes.astype(int).tolist()):
        crop = image[top : top + height, left : left + width]
        found = boxes([image], keys(60)[[row]], 0, (height, width), (50, 70))[0]
        assert (found == (crop[:, ::-1] if drawn.flipped[row] else crop)).all()


def test_evaluation_corners_of_many_are_those_of_each():
    sizes = np.array([(30, 41), (33, 20), (20, 20)])
    corners = evaluation_corner(sizes, (25, 25), (16, 17))
    # a side below the resized size is taken as it is: 20 -> (20 - 16) // 2
    assert corners.tolist() == [[2 + 4, 8 + 4], [4 + 4, 0 + 1], [0 + 2, 0 + 1]]


def test_a_window_on_the_very_edge_lies_inside():
    whole, beyond = np.array([[[1.0, 0, 0], [0, 1, 0]]]), np.array([[[1.0, 0, 0.01], [0, 1, 0]]])
    size = np.array([(8, 9)])
    assert lies_inside(whole, size, (8, 9))[0] and not lies_inside(beyond, size, (8, 9))[0]
