"""`--require "f1 not worse; no class -2pt"`: what a comparison must show, else the command exits with 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from warmstart.analysis.compare.differences import Difference
from warmstart.errors import UserError, closest, listing

_METRIC = re.compile(r"(?P<metric>\w+) +(?P<word>not +worse|better)(?: +by +(?P<amount>[\d.]+ *(?:pt)?))?")
_CLASS = re.compile(r"no +class +(?:-(?P<amount>[\d.]+ *(?:pt)?)|(?P<word>worse))")
GRAMMAR = "METRIC not worse [by 1pt], METRIC better [by 1pt], no class worse, no class -2pt"


@dataclass(frozen=True)
class Requirement:
    """`word` is not worse, better, or class; `amount` is in units of the metric; None of it was not given."""

    text: str
    word: str
    metric: str | None = None
    amount: float | None = None


@dataclass(frozen=True)
class Check:
    """A requirement, whether it holds, and by which numbers."""

    text: str
    passed: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse(text: str) -> list[Requirement]:
    """The requirements, between semicolons or commas. UserError for one that is not understood."""
    found = []
    for part in (part.strip() for part in re.split(r"[;,]", text)):
        if not part:
            continue
        match = _CLASS.fullmatch(part) or _METRIC.fullmatch(part)
        amount = None if match is None else _amount(match["amount"])
        if match is None or (match["amount"] is not None and amount is None):
            raise UserError(f"--require: {part!r} is not understood", GRAMMAR)
        if match.re is _CLASS:
            found.append(Requirement(part, "class", None, amount))
        else:
            found.append(Requirement(part, " ".join(match["word"].split()), match["metric"], amount))
    if not found:
        raise UserError("--require names no requirement", GRAMMAR)
    return found


def _amount(text: str | None) -> float | None:
    """`2pt` are two percentage points, .02; `.02` is the metric's own unit. None where it is no number."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("pt")) * (0.01 if text.endswith("pt") else 1)
    except ValueError:
        return None


def check_metrics(requirements: Sequence[Requirement], names: Sequence[str]) -> None:
    """UserError for a metric that is not among `names`."""
    for requirement in requirements:
        if requirement.metric is not None and requirement.metric not in names:
            raise UserError(
                f"--require {requirement.text}: no metric {requirement.metric!r} here",
                listing(names),
                closest(requirement.metric, names),
            )


def check(
    requirements: Sequence[Requirement], overall: Sequence[Difference], by_class: Sequence[Difference]
) -> list[Check]:
    """What holds. `not worse` alone: it is not shown to be worse; `not worse by X`: it is shown to be less than X
    worse; `better`: it is shown to be. Shown is what the interval excludes.

    `no class worse`: no class is shown to be worse; `no class -X`: none has lost as much as X as measured, by chance
    or not.
    """
    metrics = {row.name: row for row in overall}
    return [
        _check_classes(requirement, by_class)
        if requirement.metric is None
        else _check_metric(requirement, metrics[requirement.metric])
        for requirement in requirements
    ]


def _check_metric(requirement: Requirement, row: Difference) -> Check:
    low, high = row.gains
    margin = requirement.amount or 0.0
    if requirement.word == "better":
        passed = low > margin
    elif requirement.amount is None:
        passed = high >= 0
    else:
        passed = low > -margin
    told = f"{row.name} {row.first:.4f} -> {row.second:.4f} ({row.low:+.4f} to {row.high:+.4f})"
    return Check(requirement.text, bool(passed), told)


def _check_classes(requirement: Requirement, by_class: Sequence[Difference]) -> Check:
    if requirement.amount is None:
        bad = [row for row in by_class if row.high < 0]
    else:
        bad = [row for row in by_class if row.difference <= -requirement.amount + 1e-12]
    told = listing((f"{row.name} {row.difference:+.4f} of {row.support}" for row in bad), 5)
    return Check(requirement.text, not bad, told or f"none of {len(by_class)} classes")
