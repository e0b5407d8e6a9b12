"""One file to pixels, as a person sees them: upright, on white, 8 bit.

Shapes: H, W the file's size after EXIF rotation; C is 1 for a file stored as grey (with alpha or not),
3 (RGB) for any other, palettes too, and more or 2 for arrays (.npy) and TIFF with a fourth channel that
is no alpha. Of an animation, or of several pages, it is the first.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from warmstart.data.jpeg_header import jpeg_header
from warmstart.errors import UserError

_FORMATS = "jpg jpeg jpe jfif png webp gif bmp tif tiff ppm pgm pbm avif npy"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _FORMATS.split())
_MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a decompression bomb

_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*")
_GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
_ORIENTATION = 274  # EXIF tag; 5 to 8 exchange height and width


class CorruptImage(Exception):
    """A file that cannot be shown truthfully; `reason` is one line for the quarantine list."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(path: str | Path) -> np.ndarray:
    """uint8 (H, W, C) in RGB order. Raises CorruptImage, and nothing else, for any unreadable file."""
    return decode_bytes(read_bytes(Path(path)))


def decode_bytes(data: bytes) -> np.ndarray:
    """`decode` for the content of a file: a whole plain JPEG by OpenCV, which is fast; others by Pillow."""
    jpeg = jpeg_header(data)
    if jpeg is not None and jpeg.plain:
        check_size(jpeg.height, jpeg.width)
        flag = cv2.IMREAD_GRAYSCALE if jpeg.components == 1 else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
        if image is not None:
            return image if image.ndim == 3 else image[..., None]
    if data.startswith(_NPY):
        return _array(data)
    if data.startswith(_TIFF) and _tiff_channels(data) == 4:
        return _four_channels(data)
    return _decode_slowly(data)  # also says why, where OpenCV only says no


def read_shape(path: str | Path) -> tuple[int, int, int]:
    """(H, W, C) that `decode` would give, from the header alone. Raises CorruptImage."""
    return read_shape_bytes(read_bytes(Path(path)))


def read_shape_bytes(data: bytes) -> tuple[int, int, int]:
    """`read_shape` for the content of a file."""
    if data.startswith((_NPY, *_TIFF)):  # Pillow turns a TIFF while loading, its size before is no promise
        height, width, channels = decode_bytes(data).shape
        return height, width, channels
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "TIFF":  # BigTIFF
                height, width, channels = decode_bytes(data).shape
                return height, width, channels
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                height, width = width, height
            return height, width, 1 if image.mode in _GREY_MODES else 3
    except Exception as error:
        raise CorruptImage(reason_of(error)) from error


def has_more_frames(file: Path | bytes) -> bool:
    """Whether a readable file is an animation or has several pages, and `decode` takes the first."""
    if isinstance(file, bytes):
        head = file[:12]
    else:
        with file.open("rb") as opened:
            head = opened.read(12)
    if not head.startswith((b"GIF8", b"\x89PNG", b"RIFF", *_TIFF)) and head[4:8] != b"ftyp":
        return False  # the second picture of a JPEG is a thumbnail or a gain map
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, EOFError, ValueError, SyntaxError):
        return True  # the first could be decoded, so what is broken comes after it


def to_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    """(H, W, C) -> (H, W, num_channels); grey is repeated, colour becomes grey by the luma of JPEG.

    Raises UserError for any other change of the number.
    """
    check_channels(image.shape[2], num_channels)
    if image.shape[2] == num_channels:
        return image
    if num_channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def check_channels(found: int, wanted: int) -> None:
    """Raise UserError where images cannot become what a model takes."""
    if found != wanted and not {found, wanted} <= {1, 3}:
        raise UserError(
            f"the images have {found} channels, the model takes {wanted}",
            "as many channels as the model takes; only grey (1) and RGB (3) are changed into each other",
            f"--mean and --std with {found} values, and a model of timm, which takes any number of channels",
        )


def cover(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize, keeping the aspect ratio, until the image covers `size`; then crop its centre to exactly that."""
    return centre_crop(scale_to_cover(image, size), size)


def scale_to_cover(image: np.ndarray, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Resize, keeping the aspect ratio, until the image covers `size`, which one of its sides then equals.

    `nearest` takes pixels as they are and mixes none: for masks of ids.
    """
    if image.shape[:2] == size:
        return image
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    image = _trim(image, size, scale)
    height, width = (max(want, round(have * scale)) for have, want in zip(image.shape[:2], size, strict=True))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return resize_to(image, (height, width), cv2.INTER_NEAREST_EXACT if nearest else smooth)


def stretch_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 1 or 3) -> (*size, C), to the bit as torchvision's Resize of both sides does it with Pillow."""
    if image.shape[:2] == size:
        return image
    pixels = image[..., 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size, -1)


def resize_to(image: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    """uint8 (H, W, C) -> (*size, C) by one of OpenCV's methods; untouched where it has that size."""
    if image.shape[:2] == size:
        return image
    parts = [image[..., at : at + 4] for at in range(0, image.shape[2], 4)]  # OpenCV averages up to four
    resized = [cv2.resize(part, size[::-1], interpolation=method) for part in parts]
    return np.dstack(resized) if len(resized) > 1 else resized[0].reshape(*size, -1)


def centre_crop(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(..., H, W, C) -> contiguous (..., h, w, C); the same array if nothing is cut off."""
    height, width = images.shape[-3:-1]
    assert height >= size[0] and width >= size[1], f"cannot crop {size} out of {(height, width)}"
    if (height, width) == size:
        return np.ascontiguousarray(images)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.ascontiguousarray(images[..., top : top + size[0], left : left + size[1], :])


def _trim(image: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    """Cut the far ends off a ribbon (1 x 60000), whose enlargement would not fit in memory."""
    keep = []
    for have, want in zip(image.shape[:2], size, strict=True):
        room = math.ceil(4 * want / scale)
        keep.append(min(have, room + (have - room) % 2) if have * scale > 8 * want else have)
    return centre_crop(image, (keep[0], keep[1]))


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises CorruptImage where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptImage("file is missing") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name that a table gave
        raise CorruptImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise CorruptImage("empty file (0 bytes)")
    return data


def _array(data: bytes) -> np.ndarray:
    """A .npy file: (H, W) or (H, W, C), uint8 or uint16."""
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise CorruptImage(reason_of(error)) from error
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise CorruptImage(f"an array of shape {pixels.shape}; an image is (H, W) or (H, W, C)")
    if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]) / 4:
        raise CorruptImage(f"an array of shape {pixels.shape}: the channels seem to come first")
    check_size(*pixels.shape[:2])
    return _to_bytes(pixels if pixels.ndim == 3 else pixels[..., None])


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, where 65535 is white."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16:
        raise CorruptImage(f"{pixels.dtype} pixels have no stated range; save as uint8 or uint16")
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _tiff_channels(data: bytes) -> int:
    """Channels of the first page, alpha not counted. Raises CorruptImage for a kind that nothing here reads."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        samples, is_rgb, extra = tags.get(277, 1), tags.get(262) == 2, tags.get(338, ())
    except Exception as error:
        raise CorruptImage(reason_of(error)) from error
    num_alpha = int(len(extra) == 1 and extra[0] in (1, 2))
    is_plain = not extra and samples <= (4 if tags.get(262) == 5 else 3)
    if is_plain or (num_alpha and samples in (2, 4)):
        return int(samples - num_alpha)
    if samples == 4 and is_rgb:
        return 4
    raise CorruptImage(
        f"a TIFF of {samples} channels cannot be read; save it as .npy of shape (H, W, {samples})"
    )


def _four_channels(data: bytes) -> np.ndarray:
    """An RGB TIFF whose fourth channel is no alpha, such as near infrared; CMYK is colour."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.height, image.width)
            is_ink = image.mode == "CMYK"
        pixels = None if is_ink else cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:
        raise CorruptImage(reason_of(error)) from error
    if is_ink:
        return _decode_slowly(data)
    if pixels is None or pixels.shape[2:] != (4,):
        raise CorruptImage("a TIFF of 4 channels that cannot be decoded; save it as .npy of shape (H, W, 4)")
    return _to_bytes(np.ascontiguousarray(pixels[..., [2, 1, 0, 3]]))


def check_size(height: int, width: int) -> None:
    """Raise CorruptImage for more pixels than a file that means well has."""
    if height * width > _MAX_PIXELS:
        raise CorruptImage(f"{height} x {width} = {height * width} pixels, more than {_MAX_PIXELS}")


def reason_of(error: Exception) -> str:
    """What a decoder's error says, in one line."""
    if isinstance(error, CorruptImage):
        return error.reason
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any known format"
    return " ".join(str(error).split()) or type(error).__name__


def _decode_slowly(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.height, image.width)
            image.load()
            return _to_array(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of foreign bytes raise anything; each becomes a quarantined file
        raise CorruptImage(reason_of(error)) from error


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
