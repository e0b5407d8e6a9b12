"""Colour as one linear map per sample, and blur: on uint8 pixels, saturating.

Shapes: N samples, (h, w, C) the pixels of one; colours are in RGB order.
"""

from __future__ import annotations

import cv2
import numpy as np

_LUMA = np.array((0.299, 0.587, 0.114))
_CHROMA = np.array(((0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)))  # I and Q of YIQ
_YIQ = np.vstack((_LUMA, _CHROMA))
_RGB = np.linalg.inv(_YIQ)
_BLUR_SIZE = 224  # the shorter side, in pixels, that sigmas are for


def colour_maps(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((N, 3, 3), (N,)): a pixel becomes `map @ pixel + share * m`, where m is the image's mean luma.

    `factors` (N, 4) are those of torchvision's ColorJitter, in this order: brightness, contrast,
    saturation, and hue in turns. Nothing is clipped between them. The hue turns the chroma (I, Q) about
    the grey axis: linear and true to luma, where torchvision shifts the H of HSV.
    """
    brightness, contrast, saturation, hue = factors.T
    gain = brightness * contrast
    desaturate = (
        saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * _LUMA[None, None, :]
    )
    angle = -2 * np.pi * hue  # red turns towards green, as in HSV
    turn = np.zeros((len(factors), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 2, 1] = np.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    return gain[:, None, None] * (_RGB @ turn @ _YIQ @ desaturate), (1 - contrast) * brightness


def recolour(pixels: np.ndarray, colour_map: np.ndarray, share: float) -> np.ndarray:
    """uint8 (h, w, C) -> the same; images that are not RGB have brightness and contrast only."""
    if pixels.shape[2] == 3:
        offset = share * (_LUMA @ cv2.mean(pixels)[:3])
        return cv2.transform(pixels, np.column_stack((colour_map, np.full(3, offset))))
    gain = colour_map[0].sum()  # what a grey pixel is multiplied by
    levels = gain * np.arange(256) + share * pixels.mean()
    return np.rint(levels).clip(0, 255).astype(np.uint8)[pixels]


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of uint8 (h, w, C); `sigma` is in pixels of an image whose shorter side has 224."""
    scaled = sigma * min(pixels.shape[:2]) / _BLUR_SIZE
    return cv2.GaussianBlur(pixels, (0, 0), scaled).reshape(pixels.shape)
