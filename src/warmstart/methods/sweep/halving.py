"""Asynchronous successive halving: trials pause at shares of their steps, and the best third of each rung goes on.

L. Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning (MLSys), algorithm 2; the rungs of Jamieson &
Talwalkar 2016. A rung is a share of a trial's own steps, so that all have gone equally far along their schedules; a
trial that goes on does so from its last step, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ETA = 3
_MOST_RUNGS = 3  # pauses: at 1/27, 1/9 and 1/3


@dataclass(frozen=True)
class Entry:
    """A trial as halving sees it: scores (more is better) by thousandths of its steps, how many rungs it was let past,
    and whether it pauses here and can go on."""

    number: int
    scores: Mapping[int, float]
    num_passed: int = 0
    is_paused: bool = False


def rungs_of(num_validations: int) -> tuple[int, ...]:
    """Where trials pause, in thousandths of their steps; every rung has a validation before it."""
    num = 0
    while num < _MOST_RUNGS and num_validations // ETA ** (num + 1) >= 1:
        num += 1
    return tuple(1000 // ETA**power for power in range(num, 0, -1))


def score_at(scores: Mapping[int, float], rung: int) -> float | None:
    """The best score up to the first validation at or behind a rung; None before it was reached."""
    reached = min((place for place in scores if place >= rung), default=None)
    if reached is None:
        return None
    return max(score for place, score in scores.items() if place <= reached)


def is_at_rung(place: int, num_passed: int, rungs: Sequence[int]) -> bool:
    """Whether a trial that was let past `num_passed` rungs has come to the next one."""
    return num_passed < len(rungs) and place >= rungs[num_passed]


def next_to_go_on(entries: Sequence[Entry], rungs: Sequence[int], is_last: bool = False) -> int | None:
    """The number of the paused trial to go on with: of the highest rung that has one among its best third.

    `is_last`: nobody will come to a rung any more, so each lets one past, if it has let past none.
    """
    for level in reversed(range(len(rungs))):
        known = ((score_at(entry.scores, rungs[level]), entry) for entry in entries)
        ranked = sorted(
            ((score, entry) for score, entry in known if score is not None),
            key=lambda pair: (-pair[0], pair[1].number),
        )
        num = len(ranked) // ETA
        if is_last and ranked and not any(entry.num_passed > level for _, entry in ranked):
            num = max(1, num)
        for _, entry in ranked[:num]:
            if entry.is_paused and entry.num_passed == level:
                return entry.number
    return None
