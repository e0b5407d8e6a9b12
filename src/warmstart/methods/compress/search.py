"""How much the next round removes, and when it is over; which of the rounds is the result."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.config.compress_section import CompressConfig
from warmstart.methods.compress.point import Point


def next_amount(settings: CompressConfig, points: Sequence[Point]) -> float | None:
    """The share of the original that is gone after the next round, or None: it is over.

    `points` are the original and the rounds so far.
    """
    last, num_rounds = points[-1], len(points) - 1
    if not settings.searches:
        return None if num_rounds else settings.share
    amount, goal = settings.step * (num_rounds + 1), _share_to_remove(settings, points[0])
    if last.removed < goal < amount:
        amount = goal  # no further than asked for
    if num_rounds >= settings.max_rounds or amount >= 1 or not within(settings, last):
        return None
    is_met = has_target(settings) and not missed(settings, last, points[0])
    return None if num_rounds and is_met else amount


def has_target(settings: CompressConfig) -> bool:
    """Whether there is something to reach, beside what may be lost: then no round goes beyond it."""
    return (settings.target_latency, settings.target_size, settings.target_macs) != (None, None, None)


def _share_to_remove(settings: CompressConfig, original: Point) -> float:
    """The share of MACs whose removal meets --target-macs; 1 where that is not asked for."""
    if settings.target_macs is None:
        return 1.0
    return 1 - (
        settings.target_macs if settings.target_macs < 1 else settings.target_macs / original.cost.macs
    )


def chosen(settings: CompressConfig, points: Sequence[Point]) -> tuple[int, str]:
    """(the number of the result among `points`, why), of the rounds only."""
    if not settings.searches:
        return len(points) - 1, "the one round"
    good = [number for number, point in enumerate(points) if number and within(settings, point)]
    best = good[-1] if good else 1
    misses = missed(settings, points[best], points[0])
    if not good:
        return (
            best,
            f"--max-drop {settings.max_drop:g} was lost in the first round: the smallest change is kept",
        )
    if misses:
        return best, f"the best found, which does not meet {', '.join(misses)}"
    return best, "the last round that met the goals"


def within(settings: CompressConfig, point: Point) -> bool:
    """Whether val has not lost more than --max-drop."""
    return settings.max_drop is None or point.change is None or point.change.difference >= -settings.max_drop


def missed(settings: CompressConfig, point: Point, original: Point) -> list[str]:
    """The flags of the targets that a model does not meet."""
    cost, found = point.cost, list[str]()
    if settings.target_latency is not None and cost.latency[1].median > settings.target_latency:
        found.append("--target-latency")
    if settings.target_size is not None and cost.num_bytes > settings.target_size:
        found.append("--target-size")
    if settings.target_macs is not None:
        share = original.cost.macs if settings.target_macs < 1 else 1
        if cost.macs > settings.target_macs * share:
            found.append("--target-macs")
    return found
