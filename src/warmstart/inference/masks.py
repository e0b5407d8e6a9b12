"""Masks of whole images of any size: at the scale of training, in windows of the model's size, in several looks.

Shapes: H x W the image, H' x W' what it is resized to, h x w the model's input, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from warmstart.data.decode import resize_to, to_channels
from warmstart.inference.inputs import Inputs
from warmstart.records import Preprocessing

WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Looks:
    """How often an image is looked at (test-time augmentation): the mean of the probabilities counts.

    `scales` multiply the size of training. `mirrored` is the order of the classes in a mirror image (left and right
    change places; see `MaskRules.mirrored`), None for no look at it. `overlap` is the share of a window
    that the next one sees again; `at_once` windows go through the model together.
    """

    scales: tuple[float, ...] = (1.0,)
    mirrored: tuple[int, ...] | None = None
    overlap: float = 0.5
    at_once: int = WINDOWS_AT_ONCE


_LONGEST = 8  # times the model's input: a ribbon is not enlarged beyond


def predict_mask(
    module: nn.Module,
    image: np.ndarray,
    preprocessing: Preprocessing,
    inputs: Inputs,
    looks: Looks,
    native: bool = False,
) -> np.ndarray:
    """The likeliest class of every pixel of uint8 (H, W, C), as int64 (H, W). Leaves the module in eval mode.

    `native`: an image of exactly the input's size is taken as it is, as `View.resize` does.
    """
    module.eval()
    height, width = image.shape[:2]
    pixels = to_channels(image, preprocessing.num_channels)
    is_native = native and (height, width) == preprocessing.image_size
    base = preprocessing.image_size if is_native else preprocessing.resize_size
    found = []
    for scale in looks.scales:
        scaled = _covering(pixels, (base[0] * scale, base[1] * scale))
        found.append(_probabilities(module, scaled, preprocessing.image_size, inputs, looks))
        if looks.mirrored is not None:
            mirror = np.ascontiguousarray(scaled[:, ::-1])
            seen = _probabilities(module, mirror, preprocessing.image_size, inputs, looks)
            found.append(seen[list(looks.mirrored), :, ::-1])
    return _likeliest(found, height, width)


def _covering(image: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """The whole image, resized until it covers `size`; ribbons, which would grow too long for that, less."""
    ratios = [want / have for have, want in zip(image.shape[:2], size, strict=True)]
    scale = min(max(ratios), max(1.0, _LONGEST * min(ratios)))
    height, width = (max(1, round(have * scale)) for have in image.shape[:2])
    return resize_to(image, (height, width), cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _likeliest(found: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """int64 (H, W) from maps (K, H', W') of several sizes; one class after the other, as K planes may not fit."""
    best, answer = np.full((height, width), -1.0, np.float32), np.zeros((height, width), np.int64)
    for number in range(len(found[0])):
        total = np.zeros((height, width), np.float32)
        for one in found:
            plane = np.ascontiguousarray(one[number])
            total += cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        is_better = total > best
        best[is_better], answer[is_better] = total[is_better], number
    return answer


def _probabilities(
    module: nn.Module, image: np.ndarray, window: tuple[int, int], inputs: Inputs, looks: Looks
) -> np.ndarray:
    """float32 (K, H', W') of uint8 (H', W', C): the mean over the windows that see a pixel."""
    height, width = image.shape[:2]
    below, right = max(0, window[0] - height), max(0, window[1] - width)
    if below or right:  # a smaller look: its edge goes on
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        image = image.reshape(height + below, width + right, -1)
    sums: np.ndarray | None = None
    counts = np.zeros(image.shape[:2], np.float32)
    all_corners = _corners(image.shape[:2], window, looks.overlap)
    for start in range(0, len(all_corners), looks.at_once):
        corners = all_corners[start : start + looks.at_once]
        pieces = np.stack([image[top : top + window[0], left : left + window[1]] for top, left in corners])
        with torch.inference_mode():
            outputs = module(inputs(pieces)).float()
            if outputs.shape[-2:] != window:
                outputs = nn.functional.interpolate(outputs, window, mode="bilinear", align_corners=False)
            shares = outputs.softmax(1).cpu().numpy()
        if sums is None:
            sums = np.zeros((shares.shape[1], *image.shape[:2]), np.float32)
        for (top, left), share in zip(corners, shares, strict=True):
            sums[:, top : top + window[0], left : left + window[1]] += share
            counts[top : top + window[0], left : left + window[1]] += 1
    assert sums is not None, "an image has at least one window"
    return (sums / counts)[:, :height, :width]


def _corners(size: tuple[int, ...], window: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Top left corners of windows that cover everything; the last of a row or column ends at the edge."""
    starts = []
    for extent, length in zip(size, window, strict=True):
        step = max(1, round(length * (1 - overlap)))
        starts.append([*range(0, extent - length, step), extent - length])
    return [(top, left) for top in starts[0] for left in starts[1]]
