"""Curves as places in a drawing: axes, ticks, lines, the best step, stages. The template makes SVG of them.

Inline SVG is drawn in the page's own colours, so one drawing serves light, dark and paper, and is sharp on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 460, 240  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 36  # around the plot
_MOST_POINTS = 240  # of a line; more are averaged in equal groups
_MOST_DOTS = 40  # of a line that shows each of its points
_SPREAD = 50  # times the smallest value that the largest is: from here on an axis is logarithmic

Place = Callable[[float], float]
Points = Sequence[tuple[float, float | None]]


class Series(NamedTuple):
    """A line: its style (running, train, val, other, rate), its word, and (x, y); y None or not finite is a gap."""

    style: str
    word: str
    points: Points


@dataclass(frozen=True)
class Line:
    """`path` is SVG's; `dots` are (x, y, what is said of the point)."""

    style: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Chart:
    """`x_ticks` and `y_ticks` are (place, text), `best` is (x, y or None, word).

    `bands` are stages: (x, width, word, is shaded).
    """

    title: str
    x_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    best: tuple[float, float | None, str] | None = None
    bands: tuple[tuple[float, float, str, bool], ...] = ()
    note: str = ""
    size: tuple[int, int, int, int, int, int] = (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM)


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """About `num` round numbers that span [low, high] (Heckbert 1990, Nice Numbers for Graph Labels)."""
    step = _nice((high - low) / max(1, num - 1) or abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _nice(value: float) -> float:
    exponent = math.floor(math.log10(value))
    fraction = value / 10**exponent
    return (1 if fraction < 1.5 else 2 if fraction < 3 else 5 if fraction < 7 else 10) * 10.0**exponent


def told(value: float) -> str:
    """A tick's number, short."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def chart(
    title: str,
    x_title: str,
    series: Sequence[Series],
    best: tuple[float, float | None, str] | None = None,
    stages: Sequence[tuple[float, str]] = (),
    log_words: str = "",
    span: tuple[float, float] | None = None,
) -> Chart | None:
    """`best` is (x, y, word); `stages` are (x where it begins, word). `span` is what the x axis holds at least, so that
    charts beside each other agree. None without a finite value.

    `log_words` is the note of a logarithmic axis, which a positive quantity gets that spans more than a factor of 50.
    """
    known = [s._replace(points=_thinned(_finite(s.points))) for s in series]
    known = [s for s in known if any(y is not None for _, y in s.points)]
    values = [y for s in known for _, y in s.points if y is not None]
    if not values:
        return None
    if best is not None:  # it may lie outside the averages that are drawn of it
        best = best[0], _finite([best[:2]])[0][1], best[2]
        values += [] if best[1] is None else [best[1]]
    is_log = bool(log_words) and min(values) > 0 and max(values) > _SPREAD * min(values)
    y_marks = _decades(min(values), max(values)) if is_log else ticks(min(values), max(values))
    xs = [x for s in known for x, _ in s.points] + list(span or ()) + ([best[0]] if best else [])
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    x_marks = [mark for mark in ticks(left, right, 7) if left <= mark <= right]
    low, high = y_marks[0], y_marks[-1] if y_marks[-1] > y_marks[0] else y_marks[0] + 1

    def x_place(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / (right - left), 1)

    def y_place(y: float) -> float:
        at = math.log(y / low) / math.log(high / low) if is_log else (y - low) / (high - low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * at, 1)

    lines = [_line(s, x_title, x_place, y_place) for s in known]
    star = best and (x_place(best[0]), None if best[1] is None else y_place(best[1]), best[2])
    return Chart(
        title,
        x_title,
        tuple(lines),
        tuple((x_place(x), told(x)) for x in x_marks),
        tuple((y_place(y), told(y)) for y in y_marks),
        star,
        tuple(_bands(stages, right, x_place)),
        log_words if is_log else "",
    )


def _finite(points: Points) -> list[tuple[float, float | None]]:
    return [(x, y if y is not None and math.isfinite(y) else None) for x, y in points]


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most so many points, each the mean of neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        known = [y for _, y in group if y is not None]
        x = sum(x for x, _ in group) / len(group)
        found.append((x, sum(known) / len(known) if known else None))
    return found


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 6)
    return [10.0**power for power in range(first, last + every, every)]


def _line(series: Series, x_title: str, x_place: Place, y_place: Place) -> Line:
    path, is_open = [], False
    dots = []
    for x, y in series.points:
        if y is None:
            is_open = False
            continue
        place = x_place(x), y_place(y)
        path.append(f"{'L' if is_open else 'M'}{place[0]:g} {place[1]:g}")
        dots.append((*place, f"{series.word}: {told(y)} ({x_title} {told(x)})"))
        is_open = True
    has_dots = series.style != "running" and len(dots) <= _MOST_DOTS
    return Line(series.style, "".join(path), tuple(dots) if has_dots or len(dots) == 1 else ())


def _bands(
    stages: Sequence[tuple[float, str]], right: float, x_place: Place
) -> list[tuple[float, float, str, bool]]:
    ends = [*(start for start, _ in stages[1:]), right][: len(stages)]
    found = []
    for number, ((start, word), end) in enumerate(zip(stages, ends, strict=True)):
        begin = x_place(max(start, 0.0))
        found.append((begin, round(max(0.0, x_place(min(end, right)) - begin), 1), word, number % 2 == 1))
    return found
