"""A YAML with `phases:`: several runs, each a child of the one before it. What stands beside the list holds for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.config import io
from warmstart.errors import UserError

PHASES = "phases"
_FOLDER, _NAME, _FILE = "output.output_dir", "output.name", "output.save_as"


@dataclass(frozen=True)
class Phase:
    """One run: what it keeps of the run before, and its settings. `number` is 0 where there is no list."""

    keep: str
    layers: tuple[io.Layer, ...] = ()
    number: int = 0
    is_last: bool = True

    def settings(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The flags with a place of its own for each phase."""
        if not self.number:
            return flags
        paths = {leaf: f"output.{leaf}" for leaf in ("output_dir", "name", "save_as")}
        found = placed({paths[leaf]: flags.get(leaf) for leaf in paths}, self.number, self.is_last)
        return flags | {leaf: found.get(path) for leaf, path in paths.items()}


def placed(outputs: dict[str, Any], number: int, is_last: bool) -> dict[str, Any]:
    """Of places for all phases those of one: X/phase1 of `output_dir` X, N-phase1 of `name` N.

    A file of weights is written after the last one.
    """
    own = {
        _FOLDER: outputs.get(_FOLDER) and str(Path(str(outputs[_FOLDER])) / f"phase{number}"),
        _NAME: outputs.get(_NAME) and f"{outputs[_NAME]}-phase{number}",
        _FILE: outputs.get(_FILE) if is_last else None,
    }
    return {path: value for path, value in own.items() if value is not None}


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
    listed = content.pop(PHASES)
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(
            f"{path}: {PHASES} is {str(listed)[:80]!r}",
            "a list with a set of changes for each phase",
            "phases: [{keep: weights, optim: {lr: 1e-3}}, {keep: weights, optim: {lr: 1e-4}}]",
        )
    shared = io.flatten(content, str(path), problems)
    found = []
    for number, entry in enumerate(listed, 1):
        is_last = number == len(listed)
        sections = {key: value for key, value in entry.items() if key != "keep"}
        own = io.flatten(sections, f"{path}, phase {number}", problems)
        places = placed(shared.values, number, is_last)
        if _FOLDER in own.values or _NAME in own.values:
            places = {_FILE: places[_FILE]} if _FILE in places else {}
        of_all = {path: value for path, value in shared.values.items() if path not in (_FOLDER, _NAME, _FILE)}
        layer = io.Layer(shared.origin, of_all | places, shared.notes)
        found.append(Phase(str(entry.get("keep", keep)), (layer, own), number, is_last))
    if problems:
        raise UserError.of_problems(problems, "the settings")
    return found
