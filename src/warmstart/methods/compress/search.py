"""How much the next round removes, and when it is over; which of the rounds is the result."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.config.compress_section import CompressConfig
from warmstart.errors import UserError
from warmstart.methods.compress.point import Point

# Of the original: what a round leaves can be so far from what it was asked for, for units are whole.
_BEYOND = 0.02
_DIGITS = 9  # .1 + .2 is .3


def next_amount(settings: CompressConfig, points: Sequence[Point]) -> float | None:
    """The share of the original that is gone after the next round, or None: it is over.

    `points` are the original and the rounds so far.
    """
    last, num_rounds = points[-1], len(points) - 1
    if not settings.searches:
        return None if num_rounds else settings.share
    amount = round(last.removed + settings.step, _DIGITS)
    goal = _share_to_remove(settings, points[0])
    if last.removed < goal < amount:
        amount = goal  # no further than asked for
    elif last.removed >= goal and "--target-macs" in missed(settings, last, points[0]):
        amount = round(last.removed + min(settings.step, _BEYOND), _DIGITS)
    if num_rounds >= settings.max_rounds or amount >= 1 or not within(settings, last):
        return None
    is_met = has_target(settings) and not missed(settings, last, points[0])
    return None if num_rounds and is_met else amount


def has_target(settings: CompressConfig) -> bool:
    """Whether there is something to reach, beside what may be lost: then no round goes beyond it."""
    return (settings.target_latency, settings.target_size, settings.target_macs) != (None, None, None)


def _share_to_remove(settings: CompressConfig, original: Point) -> float:
    """The share of MACs whose removal meets --target-macs; 1 where that is not asked for, or where rounds remove
    shares of something else (features)."""
    if settings.target_macs is None or settings.scope == "embedding":
        return 1.0
    return 1 - (
        settings.target_macs if settings.target_macs < 1 else settings.target_macs / original.cost.macs
    )


def check_targets(settings: CompressConfig, original: Point) -> None:
    """UserError: the original meets every target, so that nothing would have to be removed."""
    if has_target(settings) and not missed(settings, original, original):
        cost = original.cost
        raise UserError(
            f"{original.reference} meets the target as it is: {cost.macs / 1e6:.2f} million MACs, "
            f"{cost.num_bytes / 1e6:.2f} MB, {cost.latency[1].median * 1e3:.2f} ms",
            "a target that it does not meet: nothing would have to be removed",
            "--amount removes a share whatever it costs now",
        )


def chosen(settings: CompressConfig, points: Sequence[Point], stopped: str | None = None) -> tuple[int, str]:
    """(the number of the result among `points`, why), of the rounds only; `stopped` says why there are no more."""
    number, why = _best(settings, points)
    return number, why if stopped is None else f"{why}; no further round: {stopped}"


def _best(settings: CompressConfig, points: Sequence[Point]) -> tuple[int, str]:
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
