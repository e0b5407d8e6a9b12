"""Index masks go where their images go: Augment.with_masks against its own images and against torchvision."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from warmstart.data.augment import Augment, Parameters
from warmstart.data.decode import centre_crop
from warmstart.data.geometry import MaskRules, lies_inside, output_to_source, rotate_and_shear
from warmstart.errors import UserError

OUT, SIZE = (64, 64), (72, 90)
RULES = MaskRules()
MOVES = {"rotation": 40, "crop_pad": 0.2, "zoom": 0.3, "flip": 0.5, "crop_scale": 0.4, "shear": 20}
EVERYTHING = MOVES | {"randaugment": 9, "brightness": 0.4, "hue": 0.2, "blur": 0.5, "erase": 0.5}


def keys(num: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num, dtype=np.uint64)


def random_masks(num: int, ids: list[int], kind: type = np.uint8, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array(ids, dtype=kind), (num, *size))


def shown(
    augment: Augment, masks: np.ndarray, seed: int = 1, rules: MaskRules = RULES, images=None
) -> tuple[np.ndarray, np.ndarray]:
    images = np.full((*masks.shape, 3), 255, np.uint8) if images is None else images
    return augment.with_masks(list(images), list(masks), keys(len(masks), seed), 2, OUT, SIZE, rules)


def drawn(augment: Augment, num: int) -> Parameters:
    return augment.parameters(keys(num), 2, np.tile(SIZE, (num, 1)), OUT, SIZE)


@pytest.mark.parametrize("ranges", [*map(Augment.level, ("none", "light", "standard", "strong")), EVERYTHING])
def test_images_are_those_of_a_call(ranges):
    images = np.random.default_rng(0).integers(0, 256, (12, *SIZE, 3), dtype=np.uint8)
    augment = Augment(**ranges, seed=3)
    found, _ = shown(augment, random_masks(12, [0, 1]), images=images)
    assert (found == augment(list(images), keys(12), 2, OUT, SIZE)).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_without_augmentation_a_mask_is_cropped_like_its_image(kind):
    masks = random_masks(3, [0, 5, 200], kind)
    for augment in (Augment(), Augment(rotation=1e-9)):
        found = shown(augment, masks)[1]
        assert found.dtype == kind and (found == centre_crop(masks[..., None], OUT)[..., 0]).all()


def blobs(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of three plain colours, and masks with an id for each."""
    rng = np.random.default_rng(5)
    masks = np.zeros((num, *SIZE), np.uint8)
    for mask in masks:
        for number in (1, 2):
            middle = tuple(int(rng.integers(extent // 4, 3 * extent // 4)) for extent in SIZE[::-1])
            cv2.ellipse(mask, middle, (22, 13), int(rng.integers(180)), 0, 360, number, -1)
    return np.array([(40, 70, 60), (210, 120, 90), (90, 160, 220)], np.uint8)[masks], masks


@pytest.mark.parametrize(
    ("ranges", "border"),
    [
        *((Augment.level(name), 1) for name in ("none", "light", "standard", "strong")),
        (MOVES | {"randaugment": 10}, 2),  # half of an enlarged pixel's diagonal is more than one
    ],
)
def test_a_mask_stays_on_its_image(ranges, border):
    """But for a border of one pixel, each id has one colour of its own in every image, whatever colour that is."""
    inside = np.ones((2 * border + 1,) * 2)
    num = 40
    images, masks = blobs(num)
    found, moved = shown(Augment(**ranges, seed=2), masks, images=images)
    compared = 0
    for image, mask in zip(found, moved, strict=True):
        colours = []
        for number in (0, 1, 2):
            inner = cv2.erode((mask == number).astype(np.uint8), inside, borderValue=0) == 1
            compared += int(inner.sum())
            if inner.any():
                assert (image[inner] == image[inner][0]).all(), number
                colours.append(tuple(image[inner][0].tolist()))
        assert len(set(colours)) == len(colours)
    assert compared > 0.3 * moved.size and len(np.unique(moved[moved != 255])) == 3


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_no_id_is_ever_made_up(kind):
    ids = [0, 3, 7, 200] if kind == np.uint8 else [0, 300, 65535, 256]
    masks = random_masks(6, ids, kind)
    rules = MaskRules(ignore=9 if kind == np.uint8 else 999)
    seen = set()
    for seed in range(40):
        seen |= set(np.unique(shown(Augment(**EVERYTHING, seed=seed), masks, seed, rules)[1]).tolist())
    assert seen == {*ids, rules.ignore}


def test_outside_and_erased_are_ignored():
    """Where a white image is black, and nowhere else: to half a pixel at the edge, where it is grey."""
    num = 40
    for ranges in (MOVES, {"erase": 0.7}, {"erase": 0.7, "rotation": 90}, {"crop_scale": 0.2, "flip": 0.5}):
        augment = Augment(**ranges, seed=4)
        white, mask = shown(augment, np.full((num, *SIZE), 7, np.uint8), rules=MaskRules(77))
        white = white[..., 0]
        assert (mask[white == 255] == 7).all() and (mask[white == 0] == 77).all()
        assert (mask == 77).any() == ("crop_scale" not in ranges or "rotation" in ranges)
        if "erase" in ranges:
            for row, (top, left, height, width) in enumerate(drawn(augment, num).erased.astype(int).tolist()):
                assert (mask[row, top : top + height, left : left + width] == 77).all()


def test_flip_pairs_swap_where_the_image_is_mirrored():
    num, rules = 30, MaskRules(255, ((1, 2), (5, 4)))
    masks = random_masks(num, [0, 1, 2, 3, 4, 5])
    augment = Augment(flip=0.5)
    is_flipped = drawn(augment, num).flipped
    found = shown(augment, masks, rules=rules)[1]
    expected = centre_crop(masks[..., None], OUT)[..., 0]
    assert 5 < is_flipped.sum() < 25
    assert (found[~is_flipped] == expected[~is_flipped]).all()
    swapped = np.array([0, 2, 1, 3, 5, 4], np.uint8)
    assert (found[is_flipped] == swapped[expected[is_flipped]][:, :, ::-1]).all()
    assert rules.mirrored(7).tolist() == [*swapped.tolist(), 6]
    turned = Augment(**MOVES, seed=1)  # what is ignored stays so
    plain, paired = (shown(turned, masks, rules=its)[1] for its in (RULES, rules))
    flipped = drawn(turned, num).flipped
    table = np.r_[swapped, np.arange(6, 256)]
    assert (paired == np.where(flipped[:, None, None], table[plain], plain)).all()


@pytest.mark.parametrize("pairs", [((1, 1),), ((1, 2), (2, 3)), ((1, 255),), ((-1, 2),)])
def test_flip_pairs_that_are_unclear(pairs):
    with pytest.raises(UserError, match="cannot be swapped"):
        MaskRules(255, pairs)


def smooth_masks(num: int) -> np.ndarray:
    """Patches of twelve ids, so that a shift of half a pixel is seen at their edges only."""
    noise = np.random.default_rng(0).random((num, *SIZE)).astype(np.float32)
    return np.stack(
        [np.digitize(cv2.GaussianBlur(one, (0, 0), 2), np.linspace(0.4, 0.6, 11)) for one in noise]
    ).astype(np.uint8)


def test_crops_are_those_of_torchvision():
    num, augment = 30, Augment(crop_scale=0.3, flip=0.5)
    masks, parameters = smooth_masks(num), drawn(augment, num)
    found = shown(augment, masks)[1]
    for row, (top, left, height, width) in enumerate(parameters.boxes.astype(int).tolist()):
        mask = torch.from_numpy(masks[row])[None]
        exact = InterpolationMode.NEAREST_EXACT
        expected = F.resized_crop(mask, top, left, height, width, list(OUT), exact)
        expected = F.hflip(expected) if parameters.flipped[row] else expected
        # a middle that falls between two pixels may go to either, and does so for whole lines of a box
        is_between = ((np.arange(64) + 0.5) * np.array([[height], [width]]) / 64 % 1 < 1e-6).any(axis=1)
        if not is_between.any():
            assert (found[row] == expected[0].numpy()).mean() > 0.999, row


def test_turns_are_those_of_torchvision():
    num, augment = 30, Augment(rotation=60, shear=20, zoom=0.3)
    masks, parameters = smooth_masks(num), drawn(augment, num)
    found = shown(augment, masks)[1]
    for row in range(num):
        shear = np.degrees(np.arctan(parameters.shear[row]))
        turned = F.affine(
            torch.from_numpy(masks[row])[None],
            angle=-parameters.degrees[row],
            translate=[0, 0],
            scale=parameters.scale[row],
            shear=[-shear[1], shear[0]],
            interpolation=InterpolationMode.NEAREST,
            fill=255,
        )
        expected = centre_crop(turned[0].numpy()[..., None], OUT)[..., 0]
        assert (found[row] == expected).mean() > 0.999, row


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_everything_at_once_is_the_nearest_pixel(kind):
    """Against sampling in float64 at the matrix, which tests of images compare with torchvision's."""
    num, augment = 30, Augment(**(MOVES | {"randaugment": 6}), seed=8)
    masks = random_masks(num, list(range(12)), kind)
    parameters = drawn(augment, num)
    linear = rotate_and_shear(parameters.degrees, parameters.shear, parameters.scale)
    matrices = output_to_source(
        linear, parameters.boxes, parameters.shift, parameters.flipped, parameters.centres, OUT
    )
    found = shown(augment, masks)[1]
    y, x = np.indices(OUT)
    for row, matrix in enumerate(matrices):
        across, down = np.floor(np.einsum("ij,jhw->ihw", matrix, np.stack((x, y, np.ones(OUT)))) + 0.5)
        is_inside = (across >= 0) & (down >= 0) & (across < SIZE[1]) & (down < SIZE[0])
        assert is_inside.all() or not lies_inside(matrices[[row]], np.array([SIZE]), OUT)[0]
        clamped = down.clip(0, SIZE[0] - 1).astype(int), across.clip(0, SIZE[1] - 1).astype(int)
        expected = np.where(is_inside, masks[row][clamped], 255)
        assert (found[row] == expected).mean() > 0.999, row


def test_a_mask_does_not_depend_on_its_company():
    augment, masks = Augment(**EVERYTHING), random_masks(8, [0, 1, 2])
    whole = shown(augment, masks)[1]
    images = [np.full((*SIZE, 3), 255, np.uint8)] * 3
    order = np.array([6, 1, 3])
    part = augment.with_masks(images, list(masks[order]), keys(8)[order], 2, OUT, SIZE, RULES)[1]
    assert (part == whole[order]).all()


def test_a_mask_of_another_size_is_our_mistake():
    image, mask = np.zeros((70, 70, 3), np.uint8), np.zeros((70, 71), np.uint8)
    with pytest.raises(AssertionError, match="masks of"):
        Augment(flip=1).with_masks([image], [mask], keys(1), 0, OUT, OUT, RULES)
    with pytest.raises(AssertionError, match="300"):
        shown(Augment(flip=1), random_masks(1, [0]), rules=MaskRules(300))
