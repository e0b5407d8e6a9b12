"""What every figure shares: colours, fonts that can draw the names, and the way to a PNG file.

Drawn through `Figure`, never pyplot, so nothing global is left behind and no display is needed, in
Okabe & Ito's colours, which colour-blind people tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font

from warmstart.run import writer

BLUE, SKY, ORANGE, GREEN, GREY, PALE = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#6E6E6E", "#E4E4E4"
STYLE = {
    **{"axes.spines.right": False, "axes.spines.top": False, "axes.edgecolor": "#8A8A8A"},
    **{"axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlepad": 10},
    **{"xtick.color": "#4A4A4A", "ytick.color": "#4A4A4A", "grid.color": PALE, "axes.axisbelow": True},
    **{"font.size": 10, "legend.frameon": False, "savefig.dpi": 150, "savefig.facecolor": "white"},
}
# Over STYLE, for a page that follows the reader's dark mode.
DARK = {
    **{"figure.facecolor": "#16181D", "savefig.facecolor": "#16181D", "axes.facecolor": "#16181D"},
    **{"text.color": "#E6E6E6", "axes.labelcolor": "#E6E6E6", "axes.edgecolor": "#777777"},
    **{"xtick.color": "#B8B8B8", "ytick.color": "#B8B8B8", "grid.color": "#333740"},
}
BASE_FONT = "DejaVu Sans"  # comes with matplotlib
CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti SC", "STHeiti", "Songti SC", "Arial Unicode MS", "SimSun"),
    *("Microsoft YaHei", "DengXian", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
)
MAX_NAME_LENGTH = 24  # characters of a class


def drawable(names: Sequence[str], max_length: int = MAX_NAME_LENGTH) -> tuple[list[str], list[str], str]:
    """(names as drawn, font families, note): every character of the result exists in one of the fonts.

    Long names lose their middle. A name that cannot be drawn becomes its number, and the note says so.
    """
    cleaned = ["".join(c if c.isprintable() else " " for c in name) for name in names]
    head, tail = max_length * 2 // 3 - 1, max_length // 3
    short = [n if len(n) <= max_length else f"{n[:head]}…{n[-tail:]}" for n in cleaned]
    missing = set("".join(short)) - _characters(BASE_FONT, set("".join(short)))
    if not missing:
        return short, [BASE_FONT], ""
    installed = {font.name for font in fontManager.ttflist}
    covered = {family: _characters(family, missing) for family in CJK_FONTS if family in installed}
    best = max(covered, key=lambda family: len(covered[family]), default=None)
    undrawable = missing - covered[best] if best else missing
    drawn = [f"#{number}" if set(name) & undrawable else name for number, name in enumerate(short)]
    note = "#number: a name with characters that no installed font can draw" if undrawable else ""
    return drawn, [BASE_FONT, best] if best else [BASE_FONT], note


def _characters(family: str, wanted: set[str]) -> set[str]:
    """Those of `wanted` that the font has."""
    font = FT2Font(fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False))
    return {c for c in wanted if font.get_char_index(ord(c))}


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Write the figure as PNG, with the note below it."""
    writer.write_whole(path, encode(figure, note))


def encode(figure: Figure, note: str = "") -> bytes:
    """The figure as PNG, with the note below it."""
    figure.supxlabel(note, fontsize=8, color=GREY, x=0.01, ha="left")
    content = io.BytesIO()
    layout = figure.get_layout_engine()
    assert layout is not None, "every figure here is laid out by matplotlib"
    layout.execute(figure)  # once; savefig would do it twice
    figure.set_layout_engine("none")
    figure.savefig(content, format="png")
    return content.getvalue()
