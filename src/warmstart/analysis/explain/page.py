"""The page of an explanation: one HTML file with its pictures inside, for light and dark readers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #666; --card: #f4f5f7; --line: #dcdfe4;
  --right: #00684c; --wrong: #a84300; }
@media (prefers-color-scheme: dark) { :root { --back: #16181d; --text: #e6e6e6; --soft: #a0a4ab; --card: #20232a;
  --line: #363a44; --right: #3fcf9f; --wrong: #ff9a52; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 60rem; color: var(--soft); overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .7rem; }
.card > div { display: flex; gap: .5rem; }
.card h3 { font-size: .85rem; margin: 0; max-width: 40rem; overflow-wrap: anywhere; }
.card small { color: var(--soft); }
.right h3 { color: var(--right); } .wrong h3 { color: var(--wrong); }
figure { margin: .4rem 0 0; width: 10.4rem; } figure img { width: 100%; display: block; border-radius: .25rem; }
figcaption { font-size: .75rem; color: var(--soft); overflow-wrap: anywhere; }
picture img { max-width: 100%; } table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: right; padding: .15rem .7rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } .wide { overflow-x: auto; }
"""


@dataclass(frozen=True, eq=False)
class Card:
    """An image: its group, two lines of words, and (word, uint8 (H, W, 3)) of every picture."""

    group: str
    title: str
    id: str
    views: tuple[tuple[str, NDArray[np.uint8]], ...]


@dataclass(frozen=True)
class Chart:
    """A picture for a light page and for a dark one, with its file's name and its words; `rows` are a table below.

    `numbers` is the CSV file beside the picture; empty: none.
    """

    name: str
    title: str
    words: str
    light: bytes
    dark: bytes
    rows: tuple[dict[str, Any], ...] = ()
    numbers: str = ""


def page(title: str, intro: str, cards: Sequence[Card], cards_words: str, charts: Sequence[Chart]) -> str:
    """The whole file. It asks nothing of the network."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in intro.split("\n"))]
    for group, words in (("right", "Right"), ("wrong", "Most wrong"), ("given", "Images")):
        own = [card for card in cards if card.group == group]
        if own:
            parts += [f"<h2>{words}</h2>", f"<p>{escape(cards_words)}</p>"]
            parts.append(f'<div class="cards">{"".join(map(_card, own))}</div>')
    for chart in charts:
        parts += [f"<h2>{escape(chart.title)}</h2>", f"<p>{escape(chart.words)}</p>", _picture(chart)]
        parts += [_table(chart.rows)] if chart.rows else []
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _card(card: Card) -> str:
    views = "".join(
        f'<figure><img alt="{escape(word)}" src="{_png(image)}"><figcaption>{escape(word)}</figcaption></figure>'
        for word, image in card.views
    )
    head = f"<h3>{escape(card.title)}</h3><small>{escape(card.id)}</small>"
    return f'<div class="card {card.group}">{head}<div>{views}</div></div>'


def _png(image: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return _data(content.getvalue())


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _picture(chart: Chart) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(chart.dark)}">'
    return f'<picture>{dark}<img alt="{escape(chart.title)}" src="{_data(chart.light)}"></picture>'


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else escape(str(value))
