"""What a preparation wrote: images by class and split, copies, leakage, what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warmstart.console import table
from warmstart.data.leakage import Leakage, leakage
from warmstart.data.pool import Pool
from warmstart.errors import listing
from warmstart.shown import Shown


@dataclass(frozen=True)
class Preparation(Shown):
    """What was written: images by split and class, groups, and what other divisions would have leaked."""

    path: str
    counts: dict[str, dict[str, int]]
    num_groups: int  # copies count as one group
    num_copies: int  # images that are, byte for byte, another image of the set
    leaks: tuple[Leakage, ...]
    notes: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()  # (id, reason) of images that were left out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        total = sum(sum(counts.values()) for counts in self.counts.values())
        by_class = {name: [of[name] for of in self.counts.values()] for name in self.counts["train"]}
        rows = [(name, *numbers, sum(numbers)) for name, numbers in by_class.items()]
        rows.append(("all", *(sum(of.values()) for of in self.counts.values()), total))
        lines = [
            f"{self.path}: {total} images in {self.num_groups} groups, {self.num_copies} of them copies",
            "",
            table("", ("class", *self.counts, "all"), rows),
            "",
        ]
        if self.unreadable:
            lines.append(
                f"{len(self.unreadable)} unreadable images were left out: "
                f"{listing((f'{name} ({reason})' for name, reason in self.unreadable), 4)}"
            )
        lines += ["leakage"]
        for leak in self.leaks:
            lines.append(
                f"{leak.how}: {leak.torn} groups torn apart, {leak.images} images of val and test with their group in "
                f"train, {leak.copies} with their very bytes"
            )
        return "\n".join([*lines, "", *self.notes, f"next: warmstart finetune --data {self.path}"])


def leaks_of(
    pool: Pool, written: np.ndarray, single: np.ndarray, groups: np.ndarray, digests: list[bytes]
) -> tuple[Leakage, ...]:
    """Of the splits that the data came with, of a division by single images, of what is written: each (N,) words."""
    divisions = {} if pool.words is None else {"the splits that the data came with": pool.words}
    divisions |= {"divided by single images": single, "as written": written}
    return tuple(leakage(how, words, groups, digests) for how, words in divisions.items())
