"""What a page of a report is made of: a verdict, and sections of blocks. Plain data; the templates draw them.

A block's `kind` names its template. Text is escaped by the templates. `tone` is good, bad, unsure or plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from warmstart.analysis.report.chart import Chart


@dataclass(frozen=True)
class Span:
    """A value with its interval, on the axis of a Forest; places are percents of its width."""

    label: str
    text: str
    tone: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals, one below the other; `zero` is where there is none, `ends` the axis's words."""

    kind: ClassVar[str] = "forest"
    spans: tuple[Span, ...]
    zero: float
    words: tuple[str, str, str]  # left of zero, at zero, right of it

    @classmethod
    def of(
        cls, rows: Sequence[tuple[str, str, str, float, float, float]], words: tuple[str, str, str]
    ) -> Forest:
        """`rows` are (label, text, tone, low, value, high); the axis holds all of them and 0."""
        values = [number for row in rows for number in row[3:]] + [0.0]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 1.0
        low, reach = low - margin, high - low + 2 * margin

        def place(value: float) -> float:
            return round(100 * (value - low) / reach, 2)

        spans = [Span(*row[:3], *(place(number) for number in row[3:])) for row in rows]
        return cls(tuple(spans), place(0.0), words)


@dataclass(frozen=True)
class Verdict:
    """What a reader sees in the first seconds: a word, a sentence, the numbers behind it, and what limits it."""

    tone: str
    word: str
    sentence: str
    lines: tuple[str, ...] = ()
    forest: Forest | None = None


@dataclass(frozen=True)
class Tile:
    """A number worth a glance, with its name and a line below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Charts:
    """Curves side by side; `legend` are (style of the line, word)."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A cell with a bar in it: `share` of the column's width, from its middle where it may be negative."""

    text: str
    share: float
    tone: str = "plain"
    centred: bool = False


@dataclass(frozen=True)
class Chip:
    """A cell with one word of a few, in a colour."""

    text: str
    tone: str = "plain"
    is_chip: ClassVar[bool] = True


@dataclass(frozen=True)
class Toned:
    """A cell whose words have a colour."""

    text: str
    tone: str


Cell = str | Bar | Chip | Toned


@dataclass(frozen=True)
class Table:
    """`left` columns hold words; `totals` are rows below a line. `note` is said below."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    totals: tuple[tuple[Cell, ...], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Confusion:
    """`cells` (K, K) are (count, share of the row); `frequent` are (target, answer, count, share of the target's)."""

    kind: ClassVar[str] = "confusion"
    classes: tuple[str, ...]
    cells: tuple[tuple[tuple[int, float], ...], ...]
    frequent: tuple[tuple[str, str, int, float], ...]
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One image: (data URI, word) of each view, what is said of it, and its id."""

    views: tuple[tuple[str, str], ...]
    title: str
    note: str
    id: str
    is_tiny: bool = False  # drawn with its pixels as squares


@dataclass(frozen=True)
class Gallery:
    kind: ClassVar[str] = "gallery"
    pictures: tuple[Picture, ...]
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()  # (colour, class) of masks


@dataclass(frozen=True)
class Found:
    """A finding of the diagnosis. `evidence` is in English, as `warmstart diagnose` says it."""

    title: str
    evidence: tuple[str, ...]
    remedy: str
    tone: str


@dataclass(frozen=True)
class Findings:
    kind: ClassVar[str] = "findings"
    found: tuple[Found, ...]
    label: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """(name, value) pairs."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Commands:
    """(what it does, the line to type)."""

    kind: ClassVar[str] = "commands"
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Note:
    kind: ClassVar[str] = "note"
    text: str


Block = Any  # one of the above with a `kind`


@dataclass(frozen=True)
class Section:
    """`id` is its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """`kind` is the word of what it is about, `about` the line below the title, `left_out` what is not there, why."""

    kind: str
    language: str
    title: str
    about: str
    verdict: Verdict
    tiles: Tiles | None
    sections: tuple[Section, ...]
    left_out: tuple[str, ...] = ()
    footer: str = ""
