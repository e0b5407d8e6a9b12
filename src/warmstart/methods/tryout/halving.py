"""Successive halving: everybody trains a little, the better half goes on, until one has come to its end.

Jamieson & Talwalkar 2016 (AISTATS), algorithm 1. An arm is a run: it is paused at a share of its own schedule and goes
on from there if it survives, so nothing is trained twice, and the last one is an ordinary finished run. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from warmstart.errors import UserError

_ETA = 2
_FEWEST = 2


@dataclass(frozen=True)
class Rung:
    """`num` candidates train up to `share` of their own schedules."""

    share: float
    num: int


@dataclass(frozen=True)
class Candidate:
    """A strategy to try: its settings by path, why it is tried, and what its whole run takes on this machine.

    `share` is how much of its epochs the budget allows.
    """

    name: str
    rule: str
    lr: float
    epochs: int
    seconds: float
    values: dict[str, Any]
    share: float = 1.0

    def flags(self, given: Mapping[str, Any], num: int) -> dict[str, Any]:
        """What was given, with as many epochs or steps as there is time for, and validated at the first of the rungs
        of `num` candidates where that comes before the end of an epoch."""
        first, max_steps = rungs(num)[0].share, given.get("max_steps")
        own: dict[str, Any] = {"epochs": max(1, int(self.share * self.epochs))}
        if max_steps is not None:
            own["max_steps"] = max(1, int(self.share * int(max_steps)))
            own["eval_every"] = f"{max(1, int(first * own['max_steps']))}steps"
        elif first * own["epochs"] < 1:
            own["eval_every"] = f"{first * own['epochs']:g}epochs"
        if given.get("eval_every") is not None:
            del own["eval_every"]
        return {**given, **own}


def rungs(num: int) -> tuple[Rung, ...]:
    """For `num` candidates: each rung has half as many as the one before, and goes twice as far."""
    last = num.bit_length() - 1
    return tuple(Rung(_ETA ** (k - last), num // _ETA**k) for k in range(last + 1))


def most_seconds(whole: Sequence[float], startup: float = 0.0) -> float:
    """For candidates whose runs take `whole` seconds each, if those that take longest always survive.

    `startup` seconds pass whenever one begins or goes on.
    """
    total, before, costs = 0.0, 0.0, sorted(whole, reverse=True)
    for rung in rungs(len(costs)):
        total += sum((rung.share - before) * seconds + startup for seconds in costs[: rung.num])
        before = rung.share
    return total


def within_budget(candidates: Sequence[Candidate], budget: float, startup: float) -> tuple[Candidate, ...]:
    """As many as fit, in their order, each with the same share of its own epochs.

    Raises:
        UserError: not even two have room for an epoch.
    """
    chosen = list(candidates)
    while True:
        fixed = most_seconds([0.0] * len(chosen), startup)
        whole = most_seconds([each.seconds for each in chosen])
        share = min(1.0, max(0.0, budget - fixed) / whole)
        if all(share * each.epochs >= 1 for each in chosen):
            return tuple(replace(each, share=share) for each in chosen)
        if len(chosen) <= _FEWEST:
            least = fixed + whole * max(1 / each.epochs for each in chosen)
            raise UserError(
                f"{max(0.0, budget):.0f} s are left of --time-budget: "
                f"too short to try {len(chosen)} strategies for an epoch each",
                f"about {least:.0f} s or more on this machine, and what measuring takes",
                "a longer --time-budget, a smaller --image-size, or --limit for fewer images",
            )
        chosen.pop()
