from __future__ import annotations

import cv2
import numpy as np
import pytest

from warmstart.data.augment import Augment
from warmstart.data.decode import centre_crop


def images(num: int = 5, size: tuple[int, int] = (20, 24), channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, *size, channels), dtype=np.uint8)


def keys(num: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**64, num, dtype=np.uint64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("out_size", [(20, 24), (16, 16), (15, 17)])
def test_all_zero_is_the_crop_of_evaluation(channels, out_size):
    stored = images(channels=channels)
    expected = centre_crop(stored, out_size)
    assert (Augment()(stored, keys(5), 3, out_size) == expected).all()
    barely = Augment(rotation=1e-9)  # the same through the warp
    assert (barely(stored, keys(5), 3, out_size) == expected).all()
    assert barely(stored, keys(5), 3, out_size).shape == (5, *out_size, channels)


def test_levels():
    assert not Augment(**Augment.level("none")).active
    light = Augment(**Augment.level("light"))
    assert (light.rotation, light.crop_pad, light.zoom, light.flip) == (10, 2 / 28, 0, 0)
    Augment.level("light")["rotation"] = 90
    assert Augment.level("light")["rotation"] == 10


def test_a_sample_does_not_depend_on_its_company():
    augment = Augment(30, 0.2, 0.3, 0.5, seed=4)
    stored, names = images(8), keys(8)
    whole = augment(stored, names, 2, (16, 18))
    order = np.array([6, 1, 3])
    assert (augment(stored[order], names[order], 2, (16, 18)) == whole[order]).all()
    assert (augment(stored, names, 2, (16, 18)) == whole).all()


def test_epoch_seed_and_key_each_matter():
    stored = np.repeat(images(1), 2, axis=0)
    augment = Augment(30, 0.2, seed=4)
    base = augment(stored, keys(2), 0, (20, 24))
    assert not np.array_equal(base[0], base[1])
    assert not np.array_equal(base, augment(stored, keys(2), 1, (20, 24)))
    assert not np.array_equal(base, Augment(30, 0.2, seed=5)(stored, keys(2), 0, (20, 24)))


def test_switching_one_range_on_leaves_the_others():
    names = keys(50)
    full = Augment(30, 0.2, 0.3, 0.5).parameters(names, 0, (20, 24))
    for column, part in (
        (0, Augment(rotation=30)),
        (1, Augment(crop_pad=0.2)),
        (3, Augment(zoom=0.3)),
        (4, Augment(flip=0.5)),
    ):
        assert (part.parameters(names, 0, (20, 24))[:, column] == full[:, column]).all()


def test_parameters_are_uniform():
    num = 4000
    draws = Augment(10, 2 / 28, 0.2, 0.25).parameters(keys(num), 0, (28, 56))
    for column, low, high in ((0, -10, 10), (3, 0.8, 1.2)):
        levels = np.sort((draws[:, column] - low) / (high - low))
        distance = np.abs(levels - (np.arange(num) + 0.5) / num).max()
        assert distance < 1.95 / np.sqrt(num), distance  # Kolmogorov-Smirnov, p about .001
    for column, pad in ((1, 2), (2, 4)):
        values, counts = np.unique(draws[:, column], return_counts=True)
        assert values.tolist() == list(range(-pad, pad + 1))
        expected = num / (2 * pad + 1)
        assert ((counts - expected) ** 2 / expected).sum() < 27  # chi square, p < .001 for 8 degrees
    assert abs(draws[:, 4].mean() - 0.25) < 0.03


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_is_a_crop_of_the_padded_image(channels):
    stored = images(12, (20, 24), channels)
    augment = Augment(crop_pad=0.2)
    down_right = augment.parameters(keys(12), 0, (20, 24))[:, 1:3].astype(int)
    assert len(np.unique(down_right, axis=0)) > 5
    padded = np.pad(stored, ((0, 0), (8, 8), (8, 8), (0, 0)))
    for row, (down, right) in enumerate(down_right):
        expected = padded[row, 8 + down : 28 + down, 8 + right : 32 + right]
        assert (augment(stored, keys(12), 0, (20, 24))[row] == expected).all()


def test_a_larger_store_feeds_the_shift_with_pixels():
    stored = np.full((20, 32, 32, 1), 200, dtype=np.uint8)
    assert (Augment(crop_pad=2 / 28)(stored, keys(20), 0, (28, 28)) == 200).all()
    assert (Augment(crop_pad=2 / 28)(stored[:, 2:-2, 2:-2], keys(20), 0, (28, 28)) == 0).any()


def test_a_flip_mirrors_after_the_crop():
    stored = images(4)
    assert (Augment(flip=1)(stored, keys(4), 0, (16, 18)) == centre_crop(stored, (16, 18))[:, :, ::-1]).all()


def test_rotation_turns_about_the_centre_counter_clockwise():
    image = np.zeros((1, 33, 33, 1), dtype=np.uint8)
    image[0, 15:18, 26:29] = 255  # right of the centre
    augment, names = Augment(rotation=180), keys(40)
    for key in names:
        angle = np.radians(augment.parameters(key[None], 0, (33, 33))[0, 0])
        turned = augment(image, key[None], 0, (33, 33))[0, ..., 0].astype(float)
        y, x = ((np.indices(turned.shape) * turned).sum(axis=(1, 2)) / turned.sum()) - 16
        assert (x, y) == pytest.approx((11 * np.cos(angle), -11 * np.sin(angle)), abs=0.15)


def test_rotation_agrees_with_opencv():
    stored = cv2.GaussianBlur(images(1, (41, 41))[0], (0, 0), 3)
    augment, name = Augment(rotation=40), keys(1)
    angle = augment.parameters(name, 0, (41, 41))[0, 0]
    matrix = cv2.getRotationMatrix2D((20, 20), angle, 1)
    expected = cv2.warpAffine(stored, matrix, (41, 41)).astype(int)
    assert np.abs(augment(stored[None], name, 0, (41, 41))[0].astype(int) - expected).max() <= 2


def test_zoom_above_one_enlarges():
    image = np.zeros((1, 41, 41, 1), dtype=np.uint8)
    image[0, 12:29, 12:29] = 255
    image[0, ..., 0] = cv2.GaussianBlur(image[0], (0, 0), 2)
    whole = image.sum()
    for key in keys(20):
        scale = Augment(zoom=0.3).parameters(key[None], 0, (41, 41))[0, 3]
        area = Augment(zoom=0.3)(image, key[None], 0, (41, 41)).sum()
        assert area == pytest.approx(whole * scale**2, rel=0.02)


def test_the_input_is_left_alone_and_grey_keeps_its_axis():
    stored = images(3, channels=1)
    before = stored.copy()
    assert Augment(20, 0.1, 0.1, 0.5)(stored, keys(3), 0, (20, 24)).shape == (3, 20, 24, 1)
    assert (stored == before).all()
    assert Augment(20)(stored[:0], keys(0), 0, (20, 24)).shape == (0, 20, 24, 1)


def test_draws_are_pinned():
    draws = Augment(10, 2 / 28, 0.1, 0.5, seed=7).parameters(
        np.array([2**63 + 1], dtype=np.uint64), 3, (28, 28)
    )
    assert draws[0] == pytest.approx(PINNED)  # recorded runs depend on it


PINNED = [2.2220517235487613, 2, 2, 1.0038961261906731, 1]
