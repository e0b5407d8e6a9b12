"""The page of an explanation: one HTML file with its pictures inside, for light and dark readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.pages import data_uri, document, png_uri

_STYLE = """
:root { --right: var(--good); --wrong: var(--orange); }
.card > div { display: flex; gap: .5rem; }
.card h3 { margin: 0; max-width: 40rem; overflow-wrap: anywhere; }
.right h3 { color: var(--right); } .wrong h3 { color: var(--wrong); }
figure { margin: .4rem 0 0; width: 10.4rem; }
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
    return document(title, "\n".join(parts), "explanation", _STYLE)


def _card(card: Card) -> str:
    views = "".join(
        f'<figure><img alt="{escape(word)}" src="{png_uri(image)}"><figcaption>{escape(word)}</figcaption></figure>'
        for word, image in card.views
    )
    head = f"<h3>{escape(card.title)}</h3><small>{escape(card.id)}</small>"
    return f'<div class="card {card.group}">{head}<div>{views}</div></div>'


def _picture(chart: Chart) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{data_uri(chart.dark)}">'
    return f'<picture>{dark}<img alt="{escape(chart.title)}" src="{data_uri(chart.light)}"></picture>'


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else escape(str(value))
