"""The one error users see, and the closest-name suggestions it carries.

Our own broken invariants are asserts; whatever a user can cause or mend is a `UserError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: what happened, what was expected, how to fix it.

    The command line prints the three parts without a traceback and exits with code 2.
    """

    def __init__(self, happened: str, expected: str = "", fix: str = "") -> None:
        self.happened, self.expected, self.fix = happened, expected, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.happened]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.fix:
            parts.append(f"Fix: {self.fix}")
        return "\n".join(parts)

    @classmethod
    def of_problems(cls, problems: Sequence[UserError], where: str) -> UserError:
        """Join all problems found in one place into one error, so that nobody mends them one by one."""
        assert problems, "an error needs at least one problem"
        if len(problems) == 1:
            return problems[0]
        lines = [f"{len(problems)} problems in {where}:"]
        for number, problem in enumerate(problems, 1):
            first, *rest = str(problem).split("\n")
            lines += [f"  {number}. {first}", *(f"     {line}" for line in rest)]
        return cls("\n".join(lines))


class Interrupted(UserError):
    """The user stopped a run, and everything up to there is saved. The command line exits with code 130."""


class ReportedElsewhere(UserError):
    """Another process of the same run has told the user; this one just ends. Nothing is printed."""


def closest(name: str, options: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the nearest option, or an empty string if nothing is near."""
    match = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"Did you mean {match[0]!r}?" if match else ""


def listing(names: Iterable[object], limit: int = 12) -> str:
    """A short comma-separated list that says how many it left out."""
    items = [str(name) for name in names]
    more = f", ... ({len(items) - limit} more)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
