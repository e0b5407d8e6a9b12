"""What the header of a JPEG says, read before anything is decoded."""

from __future__ import annotations

from typing import NamedTuple


class Jpeg(NamedTuple):
    height: int
    width: int
    components: int
    plain: bool  # complete, 8 bit, grey or colour, orientation in EXIF only: safe for OpenCV


def jpeg_header(data: bytes) -> Jpeg | None:
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
    return Jpeg(height, width, components, complete and upright and precision == 8 and components in (1, 3))
