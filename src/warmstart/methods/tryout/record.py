"""What is tried, as it is kept in OUT/tryout.json: with it, what was interrupted goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from warmstart.config.io import Layer, Loaded, load
from warmstart.errors import UserError, listing
from warmstart.methods.tryout.halving import Candidate
from warmstart.run import layout, writer

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """`asked` is what the command was given, `spent` the seconds of each candidate so far, `passed` those of all."""

    folder: Path
    asked: dict[str, Any]
    candidates: tuple[Candidate, ...]
    spent: tuple[float, ...]
    passed: float = 0.0

    def run(self, number: int) -> Path:
        return self.folder / layout.TRIALS / f"{number}-{self.candidates[number].name}"

    def loaded(self, number: int, given: Mapping[str, Any]) -> Loaded:
        """The settings of a candidate; `given` are the flags of the command."""
        each = self.candidates[number]
        return load(each.flags(given, len(self.candidates)), above=[Layer("advice", each.values)])

    def with_time(self, spent: Sequence[float], passed: float) -> Plan:
        """Written, so that a second start knows what is left of the budget."""
        found = replace(self, spent=tuple(spent), passed=passed)
        content = {**asdict(found), "format": _FORMAT}
        del content["folder"]
        writer.write_json(self.folder / layout.TRYOUT, content)
        return found


def new_plan(folder: Path, asked: Mapping[str, Any], candidates: Sequence[Candidate]) -> Plan:
    """UserError: the folder is in use."""
    if folder.exists() and any(entry.name != layout.OWNER for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty", "a new or empty folder", "choose another --output-dir")
    (folder / layout.TRIALS).mkdir(parents=True)
    plan = Plan(folder, comparable(asked), tuple(candidates), (0.0,) * len(candidates))
    return plan.with_time(plan.spent, 0.0)


def known_plan(folder: Path, asked: Mapping[str, Any]) -> Plan | None:
    """What was begun in this folder with the same words; None: nothing.

    Raises:
        UserError: it was begun with other words, or its record is damaged.
    """
    file = folder / layout.TRYOUT
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content.pop("format") == _FORMAT, "the one format that there is"
        candidates = tuple(Candidate(**each) for each in content.pop("candidates"))
        plan = Plan(
            folder,
            dict(content["asked"]),
            candidates,
            tuple(float(seconds) for seconds in content["spent"]),
            float(content["passed"]),
        )
        assert len(plan.spent) == len(candidates), "one of each"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(
            f"{file} is damaged: it says what is tried", "the JSON that was written", "begin anew elsewhere"
        ) from None
    given = comparable(asked)
    other = [name for name in given | plan.asked if given.get(name) != plan.asked.get(name)]
    if other:
        told = listing(f"{name} was {plan.asked.get(name)}, is {given.get(name)}" for name in other)
        raise UserError(
            f"{folder} holds what was tried with other words ({told})",
            "the same command, which goes on there",
            "choose another --output-dir",
        )
    return plan


def comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back; places where a run would be written are not part of it."""
    given = {name: str(value) for name, value in asked.items() if value is not None}
    return {name: value for name, value in sorted(given.items()) if name != "output_dir"}
