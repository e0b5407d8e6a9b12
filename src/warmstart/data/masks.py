"""Index masks: files to ids, without loss, as `Pixels` that the store keeps like those of images.

An id is the number that the file holds: a palette's index, a grey sample, a value of an array; or what a table
says of a colour. Shapes: H, W the file's size after EXIF rotation. As pixels, a mask is uint8 (H, W, 1), or
where ids go beyond 255 (`wide`) their two bytes, the lower first: uint8 (H, W, 2).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image, ImageOps

from warmstart.data.decode import (
    CorruptImage,
    check_size,
    read_shape_bytes,
    reason_of,
)
from warmstart.data.embedded import EmbeddedPixels
from warmstart.data.samples import FilePixels, Pixels
from warmstart.errors import UserError

_PNG, _NPY, _TIFF = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", (b"II*\0", b"MM\0*")
_LOSSY = frozenset(("JPEG", "MPO", "JPEG2000"))
_RGB_TO_NUMBER = np.array((1 << 16, 1 << 8, 1))

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskCoding:
    """What the numbers and colours of mask files mean.

    `colours` gives each RGB colour its id; `remap` then changes ids, all at once; those it does not name stay.
    Raises UserError for colours that are none, and ids that do not fit.
    """

    colours: Mapping[Colour, int] = field(default_factory=dict)
    remap: Mapping[int, int] = field(default_factory=dict)
    wide: bool = False  # ids go up to 65535

    def __post_init__(self) -> None:
        for colour in self.colours:
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise UserError(f"colour table: {colour} is no colour", "(red, green, blue), each 0 to 255")
        found = {self.remap.get(number, number) for number in self.colours.values()}
        for number in sorted({*found, *self.remap.values()}):
            if not 0 <= number <= self.largest:
                raise UserError(f"colour table or remap: id {number}", f"ids from 0 to {self.largest}")

    @property
    def largest(self) -> int:
        return 65535 if self.wide else 255

    @cached_property
    def _tables(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """(keys in rising order, ids) of the colours as numbers, remapped; and of the remap."""
        colours = {r << 16 | g << 8 | b: self.remap.get(to, to) for (r, g, b), to in self.colours.items()}
        pairs = [sorted(table.items()) for table in (colours, self.remap)]
        of_colours, of_ids = (np.array(rows, dtype=np.int64).reshape(-1, 2).T for rows in pairs)
        return (of_colours[0], of_colours[1]), (of_ids[0], of_ids[1])

    def ids(self, values: np.ndarray) -> np.ndarray:
        """(H, W) whole numbers, or (H, W, 3) colours, to uint8 (H, W); uint16 where wide. Raises CorruptImage."""
        kind = np.uint16 if self.wide else np.uint8
        if values.ndim == 3 and not self.colours:
            raise CorruptImage("an RGB mask, and no colour table says which id a colour stands for")
        if values.ndim == 2 and values.dtype == np.uint8:
            return np.asarray(self._of_ids(np.arange(256)).astype(kind)[values])
        result = np.empty(values.shape[:2], dtype=kind)
        translate = self._of_colours if values.ndim == 3 else self._of_ids
        # A line at a time: what is needed in between is eight times as large.
        for row, line in enumerate(values):
            result[row] = translate(line.astype(np.int64))
        return result

    def _of_colours(self, line: np.ndarray) -> np.ndarray:
        found, is_known = _look_up(*self._tables[0], line @ _RGB_TO_NUMBER)
        if not is_known.all():
            raise CorruptImage(f"the colour {tuple(line[~is_known][0].tolist())} is not in the colour table")
        return found

    def _of_ids(self, line: np.ndarray) -> np.ndarray:
        found, is_known = _look_up(*self._tables[1], line)
        ids = np.where(is_known, found, line)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > self.largest:
            raise CorruptImage(f"id {low if low < 0 else high}: ids go from 0 to {self.largest}")
        return ids


def _look_up(keys: np.ndarray, ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the id of each value, whether there is one)."""
    if not len(keys):
        return values, np.zeros(values.shape, dtype=bool)
    places = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return ids[places], keys[places] == values


@dataclass(frozen=True, eq=False)
class MaskPixels:
    """Index masks in files or tables; they satisfy `Pixels`. `StorePlan.for_masks` keeps them beside their images."""

    decoded: ClassVar[bool] = False
    files: FilePixels | EmbeddedPixels
    coding: MaskCoding

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        return as_pixels(decode_mask(self.files.encoded(index), self.coding))

    def shape(self, index: int) -> tuple[int, int, int]:
        data = self.files.encoded(index)
        if data.startswith((_NPY, *_TIFF)):  # whose headers say too little
            height, width = decode_mask(data, self.coding).shape
        else:
            height, width, _ = read_shape_bytes(data)
        return height, width, 2 if self.coding.wide else 1

    def has_more_frames(self, index: int) -> bool:
        return self.files.has_more_frames(index)

    def stamp(self, index: int) -> bytes:
        tables = sorted(self.coding.colours.items()), sorted(self.coding.remap.items())
        return self.files.stamp(index) + repr(tables).encode()

    def subset(self, indices: np.ndarray) -> MaskPixels:
        return MaskPixels(self.files.subset(indices), self.coding)


def is_wide(masks: Pixels) -> bool:
    """Whether ids take two bytes; no file is read."""
    if isinstance(masks, MaskPixels):
        return masks.coding.wide
    return len(masks) > 0 and masks.shape(0)[2] == 2


def as_pixels(ids: np.ndarray) -> np.ndarray:
    """uint8 or uint16 (..., H, W) -> uint8 (..., H, W, 1 or 2)."""
    if ids.dtype == np.uint8:
        return ids[..., None]
    assert ids.dtype == np.uint16, ids.dtype
    return np.ascontiguousarray(ids, dtype="<u2")[..., None].view(np.uint8)


def as_ids(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., H, W, 1 or 2) -> uint8 or uint16 (..., H, W), without a copy; the inverse of `as_pixels`."""
    assert pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 2), (pixels.dtype, pixels.shape)
    wide = pixels.shape[-1] == 2
    return (pixels.view("<u2") if wide else pixels)[..., 0].astype(
        np.uint16 if wide else np.uint8, copy=False
    )


def decode_mask(data: bytes, coding: MaskCoding) -> np.ndarray:
    """The content of a file -> uint8 (H, W) of ids, uint16 where wide.

    Raises CorruptImage, and nothing else, for a file that holds no ids or others than may be.
    """
    try:
        values = _array(data) if data.startswith(_NPY) else _picture(data)
    except Exception as error:  # decoders of foreign bytes raise anything
        raise CorruptImage(reason_of(error)) from error
    return coding.ids(values)


def _array(data: bytes) -> np.ndarray:
    values = np.load(io.BytesIO(data), allow_pickle=False)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    is_rgb = values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8
    if not (values.ndim == 2 or is_rgb) or not values.size or values.dtype.kind not in "bui":
        raise CorruptImage(f"{values.dtype} of shape {values.shape}; a mask is whole numbers (H, W)")
    check_size(*values.shape[:2])
    return values


def _picture(data: bytes) -> np.ndarray:
    """Whole numbers (H, W), or uint8 (H, W, 3); a palette's colours are never looked at."""
    with Image.open(io.BytesIO(data)) as image:
        check_size(image.height, image.width)
        if image.format in _LOSSY:
            raise CorruptImage(f"a mask as {image.format}, which blurs ids; save masks as PNG")
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGBA" and upright.getextrema()[-1] == (255, 255):
        upright = upright.convert("RGB")
    if upright.mode not in ("1", "L", "P", "RGB") and not upright.mode.startswith("I"):
        raise CorruptImage(
            f"pixels of the kind {upright.mode} hold no ids; save masks as grey, with a palette, or RGB"
        )
    values = np.asarray(upright)
    depth, is_grey = (data[24], data[25] == 0) if data.startswith(_PNG) else (8, False)
    if is_grey and depth in (2, 4):  # which Pillow stretches to 0..255
        return values // np.uint8(255 // (2**depth - 1))
    return values
