"""A YAML with `phases:`: several runs, each a child of the one before it. What stands beside the list holds for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.config import io
from warmstart.errors import UserError

PHASES = "phases"


@dataclass(frozen=True)
class Phase:
    """One run: what it keeps of the run before, and its changes by path. `number` is 0 where there is no list."""

    keep: str
    changes: io.Layer | None = None
    number: int = 0
    is_last: bool = True

    def settings(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The flags with a run directory for each phase: X/phase1 of `output_dir` X, N-phase1 of `name` N.

        A file of weights is written after the last one.
        """
        if not self.number:
            return flags
        folder, name = flags.get("output_dir"), flags.get("name")
        return flags | {
            "output_dir": None if folder is None else str(Path(folder) / f"phase{self.number}"),
            "name": None if name is None else f"{name}-phase{self.number}",
            "save_as": flags.get("save_as") if self.is_last else None,
        }


def read_phases(path: str | None, keep: str) -> list[Phase]:
    """The phases of a config, or the one that a config without a list is. `keep` holds where a phase says none.

    Raises:
        UserError: the file cannot be read, `phases` is no list of settings, or one of them is unknown.
    """
    problems: list[UserError] = []
    content = {} if path is None else io.parse_yaml(io.file_text(path), str(path), problems)
    if problems:
        raise UserError.of_problems(problems, "the settings")
    if PHASES not in content:
        return [Phase(keep)]
    listed = content[PHASES]
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(
            f"{path}: {PHASES} is {str(listed)[:80]!r}",
            "a list with a set of changes for each phase",
            "phases: [{keep: weights, optim: {lr: 1e-3}}, {keep: weights, optim: {lr: 1e-4}}]",
        )
    found = []
    for number, entry in enumerate(listed, 1):
        origin = f"{path}, phase {number}"
        sections = {key: value for key, value in entry.items() if key != "keep"}
        changes = io.flatten(sections, origin, problems)
        found.append(Phase(str(entry.get("keep", keep)), changes, number, number == len(listed)))
    if problems:
        raise UserError.of_problems(problems, "the settings")
    return found
