"""Augmentation as a function of (seed, epoch, sample): geometry on uint8 pixels, one warp per sample.

Shapes: N samples, H x W the resized images, h x w what the model takes (not larger), C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from warmstart.data import counters
from warmstart.data.decode import centre_crop

_LEVELS = {
    "none": {"rotation": 0.0, "crop_pad": 0.0, "zoom": 0.0, "flip": 0.0},
    "light": {"rotation": 10.0, "crop_pad": 2 / 28, "zoom": 0.0, "flip": 0.0},
}


@dataclass(frozen=True)
class Augment:
    """Ranges of the random geometry. With all four at 0, a call is exactly the centre crop of evaluation."""

    rotation: float = 0.0  # degrees; the angle is uniform in [-rotation, rotation]
    crop_pad: float = 0.0  # share of h and w; the shift is uniform in whole pixels
    zoom: float = 0.0  # the scale is uniform in [1 - zoom, 1 + zoom]
    flip: float = 0.0  # probability of a horizontal mirror image
    seed: int = 0

    @staticmethod
    def level(name: str) -> dict[str, float]:
        """The four ranges of `--augment none` and `--augment light`."""
        return dict(_LEVELS[name])

    @property
    def active(self) -> bool:
        return bool(self.rotation or self.crop_pad or self.zoom or self.flip)

    def __call__(
        self, images: np.ndarray, keys: np.ndarray, epoch: int, out_size: tuple[int, int]
    ) -> np.ndarray:
        """uint8 (N, H, W, C), uint64 keys (N,) -> uint8 (N, h, w, C); what lies outside the image is 0."""
        if not self.active:
            return centre_crop(images, out_size)
        num, height, width, channels = images.shape
        result = np.empty((num, *out_size, channels), dtype=np.uint8)
        draws = self.parameters(keys, epoch, out_size)
        for row, (image, draw) in enumerate(zip(images, draws, strict=True)):
            matrix = _output_to_source((height, width), out_size, draw)
            warped = cv2.warpAffine(
                image,
                matrix,
                (out_size[1], out_size[0]),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=0,
            )
            result[row] = warped.reshape(*out_size, channels)
        return result

    def parameters(self, keys: np.ndarray, epoch: int, out_size: tuple[int, int]) -> np.ndarray:
        """float64 (N, 5): degrees, shift down, shift right (pixels), scale, flipped (0 or 1).

        Each sample has its own five draws, so that no range changes another's outcome.
        """
        draws = [counters.generator(self.seed, epoch, counters.AUGMENT, int(key)).random(5) for key in keys]
        uniform = np.array(draws).reshape(len(keys), 5)
        pads = np.array([round(self.crop_pad * extent) for extent in out_size])
        return np.column_stack(
            (
                (2 * uniform[:, 0] - 1) * self.rotation,
                np.floor(uniform[:, 1:3] * (2 * pads + 1)) - pads,
                1 + (2 * uniform[:, 3] - 1) * self.zoom,
                uniform[:, 4] < self.flip,
            )
        )


def _output_to_source(size: tuple[int, int], out_size: tuple[int, int], draw: np.ndarray) -> np.ndarray:
    """2 x 3 matrix from output (x, y, 1) to source (x, y), pixel centres at whole numbers.

    As if the image were rotated counter-clockwise and scaled about its centre, then cropped by the
    shifted window, then mirrored.
    """
    degrees, down, right, scale, flipped = draw.tolist()
    centre_x, centre_y = (size[1] - 1) / 2, (size[0] - 1) / 2
    left = (size[1] - out_size[1]) // 2 + right - centre_x
    top = (size[0] - out_size[0]) // 2 + down - centre_y
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    step, left = (-1.0, left + out_size[1] - 1) if flipped else (1.0, left)
    return np.array(
        [
            [cos * step, -sin, cos * left - sin * top + centre_x],
            [sin * step, cos, sin * left + cos * top + centre_y],
        ]
    )
