"""Numbers in words: the same everywhere on a page."""

from __future__ import annotations

import math
from typing import Any

NOTHING = "–"


def plain(value: Any, digits: int = 4) -> str:
    """A metric with so many digits; whole numbers with separators; a dash for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.{digits}f}"
        if isinstance(value, float)
        else str(value)
    )


def signed(value: float | None, digits: int = 4) -> str:
    """With its sign, a true minus; zero has none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def share(value: float) -> str:
    """In percent, with a digit where it is small."""
    return f"{100 * value:.{1 if 0 < value < 0.1 else 0}f} %"


def rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}"


def counted(num: float) -> str:
    """A number of parameters or pixels, short: 440 k, 1.5 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if num >= size:
            short = num / (1e3 if unit == " k" else size)
            return f"{short:.3g}{unit}"
    return f"{num:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
