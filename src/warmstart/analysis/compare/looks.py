"""How often a split was used to choose among models: counted beside the runs, and paid for in the level of a verdict.

Who asks a split of 100 images nineteen times, and keeps the best answer, has one that is better by chance. A verdict's
level is divided by the number of chances that there were (Bonferroni; Dunn 1961, JASA 56:52), so all of them together
are wrong with at most that level.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.analysis.compare.sides import Side
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.run import layout, writer

_FORMAT = 1


@dataclass(frozen=True)
class Looks:
    """Uses of one split of some data: `num_pairs` different comparisons with this one, the most models that were seen
    side by side in one table (`largest_table`), and the validations among which the best step was chosen."""

    split: str
    num_pairs: int = 1
    largest_table: int = 1
    num_validations: int = 1

    @property
    def num_chances(self) -> int:
        """By how much the level is divided: every pair is a chance, so is every row of a table beyond one, and on val
        every step among which a run chose its best.

        Of a run with v validations, that one of v would seem better by chance is at most v times as likely.
        """
        return (self.num_pairs + self.largest_table - 1) * self.num_validations

    def text(self, level: float) -> str:
        parts = []
        if self.num_pairs > 1:
            parts.append(f"{self.num_pairs} different comparisons")
        if self.largest_table > 1:
            parts.append(f"a table of {self.largest_table} models")
        if self.num_validations > 1:
            parts.append(f"{self.num_validations} validations to choose the best step from")
        if not parts:
            return f"{self.split} of these data was used for this comparison only, as far as is known here"
        return (
            f"{self.split} of these data was used for {', '.join(parts)}: the verdict is at level {level:.2g} / "
            f"{self.num_chances} = {level / self.num_chances:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "num_chances": self.num_chances}


def count_pair(sides: list[Side], split: str, fingerprint: str) -> Looks:
    """Add a comparison of these models to the count beside them; the same one again is no new look."""
    entry = _add(sides, split, fingerprint, pair=" | ".join(sorted(side.key for side in sides)))
    validations = [len(side.validations()) for side in sides] if split == "val" else [1]
    return Looks(split, len(entry["pairs"]) or 1, entry["largest_table"], max(1, *validations))


def count_table(sides: list[Side], split: str, fingerprint: str) -> None:
    """Add that so many models were seen side by side."""
    _add(sides, split, fingerprint, size=len(sides))


def _add(
    sides: list[Side], split: str, fingerprint: str, pair: str | None = None, size: int = 1
) -> dict[str, Any]:
    """What is known of the split after this use. It is kept beside the last of the runs."""
    runs = [side.run for side in sides if side.run is not None]
    file = runs[-1].path.absolute().parent / layout.LOOKS if runs else None
    content = _read(file) if file is not None else {}
    data = dict(content.get(fingerprint, {}))
    known = data.get(split, {"pairs": [], "largest_table": 1})
    pairs = [*known["pairs"], *([pair] if pair is not None and pair not in known["pairs"] else [])]
    entry = {"pairs": pairs, "largest_table": max(known["largest_table"], size)}
    if file is not None and entry != known:
        try:
            writer.write_json(
                file, {"format": _FORMAT, "data": {**content, fingerprint: {**data, split: entry}}}
            )
        except UserError as error:  # runs that lie in a place that is read only
            log.warning("%s: this comparison is not counted there", error.happened)
    return entry


def _read(file: Path) -> dict[str, Any]:
    """What the file says by data fingerprint. UserError where it is damaged."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        data: dict[str, Any] = content["data"]
        is_whole = content["format"] == _FORMAT and all(
            isinstance(entry["pairs"], list) and isinstance(entry["largest_table"], int)
            for splits in data.values()
            for entry in splits.values()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{file} is damaged: it counts how often these data were used to compare models",
            "the JSON that was written",
            "remove it to count from nothing",
        )
    return data
