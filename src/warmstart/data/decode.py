"""One file to pixels, as a person sees them: upright, on white, 8 bit.

Shapes: H, W the file's size after EXIF rotation; C is 1 for a file stored as grey (with alpha or
not) and 3 (RGB) for any other, palettes too.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from warmstart.records import Preprocessing

_FORMATS = "jpg jpeg jpe jfif png webp gif bmp tif tiff ppm pgm pbm avif"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _FORMATS.split())
_MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a decompression bomb

_GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
_ORIENTATION = 274  # EXIF tag; 5 to 8 exchange height and width


class CorruptImage(Exception):
    """A file that cannot be shown truthfully; `reason` is one line for the quarantine list."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(path: str | Path) -> np.ndarray:
    """uint8 (H, W, 1 or 3) in RGB order. Raises CorruptImage, and nothing else, for any unreadable file."""
    return decode_bytes(_read(Path(path)))


def decode_bytes(data: bytes) -> np.ndarray:
    """`decode` for the content of a file: a whole plain JPEG by OpenCV, which is fast; others by Pillow."""
    jpeg = _jpeg_header(data)
    if jpeg is not None and jpeg.plain:
        _check_size(jpeg.height, jpeg.width)
        flag = cv2.IMREAD_GRAYSCALE if jpeg.components == 1 else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
        if image is not None:
            return image if image.ndim == 3 else image[..., None]
    return _decode_slowly(data)  # also says why, where OpenCV only says no


def read_shape(path: str | Path) -> tuple[int, int, int]:
    """(H, W, C) that `decode` would give, from the header alone. Raises CorruptImage."""
    return read_shape_bytes(_read(Path(path)))


def read_shape_bytes(data: bytes) -> tuple[int, int, int]:
    """`read_shape` for the content of a file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "TIFF":  # Pillow turns it while loading, its size before that is no promise
                height, width, channels = decode_bytes(data).shape
                return height, width, channels
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                height, width = width, height
            return height, width, 1 if image.mode in _GREY_MODES else 3
    except Exception as error:
        raise CorruptImage(_reason(error)) from error


def fit(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Any decoded image -> uint8 (*resize_size, num_channels)."""
    return cover(to_channels(image, preprocessing.num_channels), preprocessing.resize_size)


def to_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    """(H, W, 1 or 3) -> (H, W, num_channels); colour becomes grey by the luma of JPEG."""
    assert num_channels in (1, 3), f"{num_channels} channels"
    if image.shape[2] == num_channels:
        return image
    if num_channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def cover(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize, keeping the aspect ratio, until the image covers `size`; then crop its centre to exactly that."""
    if image.shape[:2] == size:
        return image
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    image = _trim(image, size, scale)
    height, width = (max(want, round(have * scale)) for have, want in zip(image.shape[:2], size, strict=True))
    if (height, width) != image.shape[:2]:
        channels = image.shape[2]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method).reshape(height, width, channels)
    return centre_crop(image, size)


def centre_crop(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(..., H, W, C) -> contiguous (..., h, w, C); the same array if nothing is cut off."""
    height, width = images.shape[-3:-1]
    assert height >= size[0] and width >= size[1], f"cannot crop {size} out of {(height, width)}"
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.ascontiguousarray(images[..., top : top + size[0], left : left + size[1], :])


def _trim(image: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    """Cut the far ends off a ribbon (1 x 60000), whose enlargement would not fit in memory."""
    keep = []
    for have, want in zip(image.shape[:2], size, strict=True):
        room = math.ceil(4 * want / scale)
        keep.append(min(have, room + (have - room) % 2) if have * scale > 8 * want else have)
    return centre_crop(image, (keep[0], keep[1]))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptImage("file is missing") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name that a table gave
        raise CorruptImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise CorruptImage("empty file (0 bytes)")
    return data


def _check_size(height: int, width: int) -> None:
    if height * width > _MAX_PIXELS:
        raise CorruptImage(f"{height} x {width} = {height * width} pixels, more than {_MAX_PIXELS}")


def _reason(error: Exception) -> str:
    if isinstance(error, CorruptImage):
        return error.reason
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any known format"
    return " ".join(str(error).split()) or type(error).__name__


class _Jpeg(NamedTuple):
    height: int
    width: int
    components: int
    plain: bool  # complete, 8 bit, grey or colour, orientation in EXIF only: safe for OpenCV


def _jpeg_header(data: bytes) -> _Jpeg | None:
    """What the frame header of a JPEG says; None for other formats and for broken headers."""
    if data[:2] != b"\xff\xd8":
        return None
    position, frame = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = data[position + 4 : position + 10]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if frame is None or len(frame) < 6:
        return None
    precision, components = frame[0], frame[5]
    # older OpenCV paints the missing part of a truncated file grey and says nothing
    complete = data.rfind(b"\xff\xd9", position) >= 0
    upright = data.find(b"tiff:Orientation", 0, position) < 0  # XMP, which OpenCV does not read
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return _Jpeg(height, width, components, complete and upright and precision == 8 and components in (1, 3))


def _decode_slowly(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.height, image.width)
            image.load()
            return _to_array(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of foreign bytes raise anything; each becomes a quarantined file
        raise CorruptImage(_reason(error)) from error


def _to_array(image: Image.Image) -> np.ndarray:
    """A loaded picture -> uint8 (H, W, 1 or 3)."""
    if image.mode == "F":
        raise CorruptImage("floating-point pixels have no stated range; save as 8 or 16 bit")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise CorruptImage(
                f"32-bit pixels from {values.min()} to {values.max()} have no stated range; save as 16 bit"
            )
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    grey = image.mode in _GREY_MODES
    if not image.has_transparency_data:
        pixels = np.array(image.convert("L" if grey else "RGB"))
        return pixels[..., None] if grey else pixels
    layers = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.uint32)
    colour, alpha = layers[..., :-1], layers[..., -1:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
