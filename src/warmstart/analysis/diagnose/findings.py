"""What a diagnosis says: findings with their evidence, the worst first, and what could not be asked."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warmstart.records import finite
from warmstart.shown import Shown

_WIDTH = 116
_CERTAIN = 0.7  # from here on a finding is a cause, and its changes go into the next config


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong.

    `score` in (0, 1] orders findings: how certainly it is a cause, not a symptom. `rows` are those of the founding
    documents that the remedy comes from. `changes` are settings by path; `data` is what to do to the images
    (`divide`: anew by class; `drop copies`: out of the training). `on`: the run itself may go on with the changes;
    else it starts again. `since` is an epoch. `variant`: which of the meanings of its id this is, where it has several.
    """

    id: str
    score: float
    title: str
    evidence: tuple[str, ...]
    remedy: str
    rows: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    on: bool = False
    since: float | None = None
    variant: str = ""

    @property
    def kind(self) -> str:
        """Id and variant, as catalogues of words in other languages name it."""
        return f"{self.id}_{self.variant}" if self.variant else self.id

    @property
    def is_certain(self) -> bool:
        return self.score >= _CERTAIN


@dataclass(frozen=True)
class Diagnosis(Shown):
    """`left_out` are (rule, what it lacks). `written` is the config of --write, `command` what runs it."""

    name: str
    program: str
    state: str
    findings: tuple[Finding, ...]
    num_rules: int
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    picture: str | None = None

    @property
    def verdict(self) -> str:
        if not self.findings:
            return f"nothing found: {self.num_rules - len(self.left_out)} of {self.num_rules} rules asked"
        first = self.findings[0]
        more = len(self.findings) - 1
        return first.title + (f"; and {more} more" if more else "")

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = finite(asdict(self))
        return {"verdict": self.verdict, **found}

    @property
    def pictures(self) -> list[Path]:
        return [] if self.picture is None else [Path(self.picture)]

    def text(self) -> str:
        """The verdict first; then each finding with evidence and remedy."""
        lines = [f"{self.name} ({self.program}, {self.state}): {self.verdict}"]
        for number, found in enumerate(self.findings, 1):
            lines += ["", *_wrapped(f"{number}. {found.title}", "   ")]
            for words in found.evidence:
                lines += _wrapped(f"   - {words}", "     ")
            rows = f" [{found.rows}]" if found.rows else ""
            lines += _wrapped(f"   what to do: {found.remedy}{rows}", "     ")
        lines += ["", *(line for note in self.notes for line in _wrapped(f"note: {note}", "  "))]
        if self.left_out:
            told: dict[str, list[str]] = {}
            for rule, lacks in self.left_out:
                told.setdefault(lacks, []).append(rule)
            lines += [
                line
                for lacks, rules in told.items()
                for line in _wrapped(f"not asked, {lacks}: {', '.join(rules)}", "  ")
            ]
        lines += [f"written: {path}" for path in self.written]
        lines += [f"next: {shlex.join(self.command)}"] if self.command else []
        return "\n".join(lines).rstrip()


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent)
