"""What every HTML page of ours shares: one look, for light and dark readers and for paper, and pictures inside it.

A page is one file that asks nothing of the network, and its policy forbids it to: no scripts, no fonts, no pictures
but those it holds.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_QUALITY = 88
_PIXEL_ART = 96  # pixels of a side up to which a picture is kept as it is


def generator(kind: str) -> str:
    """The line by which a page of this kind is known as ours, and may be written again."""
    return f'<meta name="generator" content="warmstart {kind}">'


def document(title: str, body: str, kind: str, style: str = "", language: str = "en") -> str:
    """The whole file: `body` is HTML, `style` comes behind the look that all pages have; `kind` is a word of ours."""
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{generator(kind)}\n<title>{escape(title)}</title>\n"
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def png_uri(image: NDArray[np.uint8]) -> str:
    """uint8 (H, W, 3), without any loss."""
    return data_uri(_encoded(Image.fromarray(image), "PNG"))


def thumbnail_uri(image: NDArray[np.uint8], side: int) -> str:
    """uint8 (H, W, 3), no longer than `side`: JPEG, and PNG of pictures so small that each pixel is seen."""
    if max(image.shape[:2]) <= _PIXEL_ART:
        return png_uri(image)
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(_encoded(picture, "JPEG"), "jpeg")


def _encoded(picture: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, format=kind, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return content.getvalue()
