"""One file that needs nothing else, and shows names as they are."""

from __future__ import annotations

import re

import numpy as np

from warmstart.analysis.explain.page import Card, Chart, page


def test_the_page_asks_nothing_of_the_network_and_escapes_names() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    cards = [Card("wrong", "<b> → c & d", "a<1>.png", (("image", image), ("grad-cam: <b>", image)))]
    rows = ({"block": "stem", "cka": 0.5, "weights_moved": None},)
    text = page(
        "Inside <run>", "line 1\nline 2", cards, "words", [Chart("x", "X", "said", b"light", b"dark", rows)]
    )
    assert "<b>" not in text and "&lt;b&gt; → c &amp; d" in text and "a&lt;1&gt;.png" in text
    assert (
        not re.findall(r'(?:src|href|srcset)="(?!data:)', text)
        and "://" not in text
        and "<script" not in text
    )
    assert "prefers-color-scheme: dark" in text and text.count("<img") == 3
    assert "<td>0.5000</td><td>-</td>" in text
    assert "<h2>Right</h2>" not in text and "<h2>Most wrong</h2>" in text
