"""The file of weights that a path, a folder or a glob stands for."""

from __future__ import annotations

from pathlib import Path

from warmstart.errors import UserError, closest, listing
from warmstart.models.choose import (
    SUFFIXES,
    Choice,
    checkpoints_in,
    choose,
    is_pattern,
    is_weights,
    matches,
)

_NUM_EXAMPLES = 5


def find_file(path: Path) -> Choice:
    """The file itself, or the best of those in a folder or of those that a glob matches."""
    if path.is_file():
        return Choice(path)
    if path.is_dir():
        paths = checkpoints_in(path)
        if not paths:
            inside = listing((p.name for p in sorted(path.iterdir())), _NUM_EXAMPLES)
            raise UserError(
                f"the folder {path} holds no weights ({inside or 'it is empty'})",
                f"a file ({', '.join(SUFFIXES)})",
                "--weights FOLDER/FILE",
            )
        return _inside(choose(paths, f"the folder {path}"))
    if is_pattern(str(path)) and (paths := [p for p in matches(str(path)) if p.is_dir() or is_weights(p)]):
        return _inside(choose(paths, str(path)))
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    near = closest(path.name, (p.name for p in parent.iterdir())) if parent == path.parent else ""
    where = f"In {parent}: {listing(sorted(p.name for p in parent.iterdir()), _NUM_EXAMPLES) or 'nothing'}."
    raise UserError(f"there is no file {path}", "a file of weights", f"{near} {where}".strip())


def _inside(choice: Choice) -> Choice:
    """Where a folder was chosen (`checkpoint-500`), the file in it."""
    found = find_file(choice.path)
    return Choice(found.path, (*choice.notes, *found.notes))
