"""Augmentation as a function of (seed, epoch, sample), on uint8 pixels: one warp and one colour map per sample.

Shapes: N samples, H_i x W_i images that cover `resize_size`, h x w what the model takes, C channels.
Ranges are torchvision's where it has them; what is drawn for one range never depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import cv2
import numpy as np

from warmstart.config.schema import DataConfig
from warmstart.data import counters
from warmstart.data.colour import blur, colour_maps, recolour
from warmstart.data.geometry import (
    BOX_DRAWS,
    MaskRules,
    Motion,
    crop_boxes,
    erase_boxes,
    evaluation_corner,
    evaluation_crop,
    frame_centres,
    lies_inside,
    move_masks,
    output_to_source,
    rotate_and_shear,
)

_NONE = {
    "rotation": 0.0,
    "crop_pad": 0.0,
    "zoom": 0.0,
    "flip": 0.0,
    "crop_scale": 1.0,
    "shear": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "blur": 0.0,
    "erase": 0.0,
    "randaugment": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
_STRONG = {"crop_scale": 0.35, "flip": 0.5, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
_LEVELS = {
    "none": _NONE,
    "light": _NONE | {"rotation": 10.0, "crop_pad": 2 / 28},
    "standard": _NONE | {"crop_scale": 0.6, "flip": 0.5},
    "strong": _NONE | _STRONG | {"erase": 0.1, "randaugment": 5.0},
}

# Uniform numbers per sample, one after the other: part of every recorded run, so new ones come last.
_NUM_DRAWS = {"rotation": 1, "shift": 2, "zoom": 1, "flip": 1, "crop": BOX_DRAWS, "shear": 1, "colour": 4}
_NUM_DRAWS |= {"blur": 2, "erase": 1 + BOX_DRAWS, "randaugment": 4}
_ENDS = np.cumsum(list(_NUM_DRAWS.values()))
_SIGMAS = (0.1, 2.0)

# What each of randaugment's operations does at magnitude 10, as in Cubuk et al. 2020: nothing, degrees, two shears,
# two shifts (shares of the size), and changes of the factors of brightness, contrast and saturation.
_SHARE = 150 / 331
_LARGEST = np.array([0, 30.0, 0.3, 0.3, _SHARE, _SHARE, 0.9, 0.9, 0.9])
_MOST = 10  # magnitude


class Parameters(NamedTuple):
    """What was drawn, a row per sample."""

    degrees: np.ndarray  # (N,), counter-clockwise
    shift: np.ndarray  # (N, 2) down and right, output pixels
    scale: np.ndarray  # (N,)
    flipped: np.ndarray  # bool (N,)
    shear: np.ndarray  # (N, 2) tangents, down and right
    boxes: np.ndarray  # (N, 4) top, left, height, width in the image: what is resized to h x w
    centres: np.ndarray  # (N, 2) down and right in the image: what rotation, shear and scale leave in place
    colour: np.ndarray  # (N, 4) factors of brightness, contrast, saturation; turns of hue
    sigma: np.ndarray  # (N,) of the blur, see colour.blur; 0 for none
    erased: np.ndarray  # (N, 4) box in the output; of height 0 for none


@dataclass(frozen=True)
class Augment:
    """Ranges of what is drawn at random. With all of them off, a call is exactly the crop of evaluation."""

    rotation: float = 0.0  # degrees; the angle is uniform in [-rotation, rotation]
    crop_pad: float = 0.0  # share of h and w; the shift is uniform in whole pixels
    zoom: float = 0.0  # the scale is uniform in [1 - zoom, 1 + zoom]
    flip: float = 0.0  # probability of a horizontal mirror image
    seed: int = 0
    crop_scale: float = 1.0  # smallest share of the area of a random-resized crop; 1 is off
    shear: float = 0.0  # degrees, horizontal; uniform in [-shear, shear]
    brightness: float = 0.0  # factors of the three are uniform in [max(0, 1 - x), 1 + x]
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turns; uniform in [-hue, hue]
    blur: float = 0.0  # probability
    erase: float = 0.0  # probability of a black box
    randaugment: float = 0.0  # magnitude from 0 to 10 of two of nine linear operations; 0 is off
    mixup: float = 0.0  # alpha of pairs that are mixed: see mixing.py, a call leaves them alone
    cutmix: float = 0.0

    @staticmethod
    def level(name: str) -> dict[str, float]:
        """All ranges of `--augment none|light|standard|strong`."""
        return dict(_LEVELS[name])

    @staticmethod
    def given(settings: DataConfig) -> dict[str, float]:
        """The ranges that are set one by one."""
        ranges = {name: getattr(settings, name) for name in _NONE}
        return {name: value for name, value in ranges.items() if value is not None}

    @property
    def in_force(self) -> dict[str, float]:
        """The ranges that are not off."""
        return {name: value for name, value in asdict(self).items() if value != _NONE.get(name, value)}

    @property
    def active(self) -> bool:
        return bool(self.in_force.keys() - {"mixup", "cutmix"})

    def __call__(
        self,
        images: Sequence[np.ndarray],
        keys: np.ndarray,
        epoch: int,
        out_size: tuple[int, int],
        resize_size: tuple[int, int],
    ) -> np.ndarray:
        """uint8 N of (H_i, W_i, C), at least one, and uint64 keys (N,) -> uint8 (N, h, w, C).

        What lies outside an image, or is erased, is 0. A window that lies inside it is clamped to its
        edge pixels, as by an ordinary resize.
        """
        if not self.active:
            return np.stack([evaluation_crop(image, resize_size, out_size) for image in images])
        return _show(images, *self._motion(images, keys, epoch, out_size, resize_size))

    def with_masks(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        keys: np.ndarray,
        epoch: int,
        out_size: tuple[int, int],
        resize_size: tuple[int, int],
        rules: MaskRules,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As a call, and the images' index masks, uint8 or uint16 N of (H_i, W_i) -> (N, h, w), moved alike.

        No id is ever mixed; what lies outside an image, or is erased, is `rules.ignore`.
        """
        shapes = [image.shape[:2] for image in images], [mask.shape for mask in masks]
        assert shapes[0] == shapes[1], f"images of {shapes[0]}, masks of {shapes[1]}"
        if not self.active:
            crops = [
                [evaluation_crop(one, resize_size, out_size) for one in many] for many in (images, masks)
            ]
            return np.stack(crops[0]), np.stack(crops[1])
        drawn, motion = self._motion(images, keys, epoch, out_size, resize_size)
        return _show(images, drawn, motion), move_masks(masks, motion, rules)

    def _motion(
        self,
        images: Sequence[np.ndarray],
        keys: np.ndarray,
        epoch: int,
        out_size: tuple[int, int],
        resize_size: tuple[int, int],
    ) -> tuple[Parameters, Motion]:
        """What is drawn, and what it does to the geometry."""
        sizes = np.array([image.shape[:2] for image in images])
        drawn = self.parameters(keys, epoch, sizes, out_size, resize_size)
        linear = rotate_and_shear(drawn.degrees, drawn.shear, drawn.scale)
        matrices = output_to_source(linear, drawn.boxes, drawn.shift, drawn.flipped, drawn.centres, out_size)
        inside = lies_inside(matrices, sizes, out_size)
        return drawn, Motion(matrices, inside, drawn.flipped, drawn.erased, out_size)

    def parameters(
        self,
        keys: np.ndarray,
        epoch: int,
        sizes: np.ndarray,
        out_size: tuple[int, int],
        resize_size: tuple[int, int],
    ) -> Parameters:
        """What is drawn for samples of these keys (N,) and image sizes, int (N, 2)."""
        uniform = self._uniform(keys, epoch)
        out = np.array(out_size)
        pads = np.rint(self.crop_pad * out)
        policy = _policy(uniform["randaugment"], self.randaugment)
        if self.crop_scale < 1:
            boxes = crop_boxes(uniform["crop"], sizes, self.crop_scale)
            centres = boxes[:, :2] + (boxes[:, 2:] - 1) / 2
        else:
            corners = evaluation_corner(sizes, resize_size, out_size)
            boxes = np.hstack((corners, np.broadcast_to(out, corners.shape))).astype(float)
            centres = frame_centres(sizes, resize_size)
        erased = erase_boxes(uniform["erase"][:, 1:], np.broadcast_to(out, sizes.shape))
        erased[uniform["erase"][:, 0] >= self.erase] = 0
        shear = np.tan(np.radians(_symmetric(uniform["shear"][:, 0], self.shear)))
        sigma = _SIGMAS[0] + uniform["blur"][:, 1] * (_SIGMAS[1] - _SIGMAS[0])
        return Parameters(
            degrees=_symmetric(uniform["rotation"][:, 0], self.rotation) + policy.degrees,
            shift=np.floor(uniform["shift"] * (2 * pads + 1)) - pads + policy.shift * out,
            scale=1 + _symmetric(uniform["zoom"][:, 0], self.zoom),
            flipped=uniform["flip"][:, 0] < self.flip,
            shear=policy.shear + np.column_stack((np.zeros_like(shear), shear)),
            boxes=boxes,
            centres=centres,
            colour=self._colour(uniform["colour"], policy.factors),
            sigma=np.where(uniform["blur"][:, 0] < self.blur, sigma, 0.0),
            erased=erased,
        )

    def _uniform(self, keys: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """Name -> (N, number of draws) in [0, 1), a stream of its own for each sample."""
        num = int(_ENDS[-1])
        rows = [
            counters.generator(self.seed, epoch, counters.AUGMENT, key).random(num) for key in keys.tolist()
        ]
        parts = np.split(np.array(rows).reshape(len(keys), num), _ENDS[:-1], axis=1)
        return dict(zip(_NUM_DRAWS, parts, strict=True))

    def _colour(self, uniform: np.ndarray, policy: np.ndarray) -> np.ndarray:
        ranges = np.array((self.brightness, self.contrast, self.saturation))
        low = np.maximum(0, 1 - ranges)
        factors = low + uniform[:, :3] * (1 + ranges - low)
        return np.column_stack((factors * policy, _symmetric(uniform[:, 3], self.hue)))


class _Policy(NamedTuple):
    """What randaugment's two operations add up to; the factors multiply."""

    degrees: np.ndarray  # (N,)
    shear: np.ndarray  # (N, 2)
    shift: np.ndarray  # (N, 2), shares of h and w
    factors: np.ndarray  # (N, 3)


def _policy(uniform: np.ndarray, magnitude: float) -> _Policy:
    """Two of the nine operations of `_LARGEST` at this magnitude, each with a random sign, from (N, 4)."""
    chosen = np.floor(uniform[:, :2] * len(_LARGEST)).astype(int)
    amounts = np.where(uniform[:, 2:] < 0.5, -1.0, 1.0) * _LARGEST[chosen] * (magnitude / _MOST)
    effects = np.zeros((len(uniform), 2, len(_LARGEST)))
    np.put_along_axis(effects, chosen[..., None], amounts[..., None], axis=2)
    total = effects.sum(axis=1)
    return _Policy(total[:, 1], total[:, 2:4], total[:, 4:6], (1 + effects[:, :, 6:]).prod(axis=1))


def _symmetric(uniform: np.ndarray, most: float) -> np.ndarray:
    return np.asarray((2 * uniform - 1) * most)


def _show(images: Sequence[np.ndarray], drawn: Parameters, motion: Motion) -> np.ndarray:
    """uint8 N of (H_i, W_i, C) -> (N, h, w, C): moved, recoloured, blurred, erased."""
    maps, shares = colour_maps(drawn.colour)
    is_coloured = (drawn.colour != (1, 1, 1, 0)).any(axis=1)
    borders, erased = motion.borders, motion.erased.astype(int).tolist()
    result = np.empty((len(images), *motion.out_size, images[0].shape[2]), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels = _warp(image, motion.matrices[row], motion.out_size, borders[row])
        if is_coloured[row]:
            pixels = recolour(pixels, maps[row], shares[row])
        if drawn.sigma[row]:
            pixels = blur(pixels, drawn.sigma[row])
        result[row] = pixels
        top, left, height, width = erased[row]
        result[row, top : top + height, left : left + width] = 0
    return result


def _warp(image: np.ndarray, matrix: np.ndarray, out_size: tuple[int, int], border: int) -> np.ndarray:
    height, width = out_size
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=border, borderValue=0)
    return warped.reshape(height, width, image.shape[2])
