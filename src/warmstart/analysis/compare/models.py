"""Is the second model better than the first, on the same samples? The verdict, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from warmstart.analysis.compare import require
from warmstart.analysis.compare.answers import Answers, align
from warmstart.analysis.compare.differences import (
    LEVEL,
    Difference,
    ExactTest,
    class_differences,
    differences,
    direction,
)
from warmstart.analysis.compare.history import History, histories
from warmstart.analysis.compare.looks import Looks, count_pair
from warmstart.analysis.compare.measures import (
    MAIN,
    OF_CLASS,
    answers_of,
    measure,
    metric_names,
    wrong_labels,
)
from warmstart.analysis.compare.sides import told_data
from warmstart.analysis.compare.telling import comparison_text, percent
from warmstart.console import table
from warmstart.shown import Shown

if TYPE_CHECKING:
    from warmstart.config.schema import DataConfig

_NUM_CLASSES = 6  # shown of each kind: fallen and risen
_WORDS = {1: "BETTER", -1: "WORSE", 0: "CANNOT BE TOLD"}
_EXACT = {
    "classification": ("fixed", "broken", "McNemar's exact p"),
    "multi-label": ("images with fewer wrong labels", "with more", "sign test p"),
    "segmentation": ("images with a higher mIoU", "with a lower one", "sign test p"),
}


@dataclass(frozen=True)
class ModelComparison(Shown):
    """Two models on N samples of a split. `direction` is 1 (the second is better), -1 or 0 (cannot be told).

    `test` counts the samples that the second model fixed and broke; `enough` is about how many samples would tell.
    """

    answers: tuple[Answers, Answers] = field(repr=False)
    split: str
    num_left_out: int
    overall: list[Difference]
    by_class: list[Difference]
    test: ExactTest
    level: float
    looks: Looks
    histories: tuple[History, History]
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    checks: list[require.Check] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    folder: str | None = None
    cost: Any = field(default=None, repr=False)  # (2, N): what each model has wrong of each sample

    @property
    def kind(self) -> str:
        return self.answers[0].kind

    @property
    def num_samples(self) -> int:
        return len(self.answers[0].ids)

    @property
    def main(self) -> Difference:
        return next(row for row in self.overall if row.name == MAIN[self.kind])

    @property
    def direction(self) -> int:
        return direction(self.main, self.test, self.level)

    @property
    def enough(self) -> int | None:
        return None if self.direction else self.test.enough(self.num_samples, self.level)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.direction:
            return f"B is {_WORDS[self.direction].lower()} than A on {self.split}"
        if self.test.fixed == self.test.broken == 0:
            return (
                f"A and B cannot be told apart: of {self.num_samples} samples none came out better or worse"
            )
        more = (
            "as many became better as worse, so no number of them would tell"
            if self.enough is None
            else f"about {self.enough:,} would do, if the difference is what it looks like here"
        )
        return f"which is better cannot be told with {self.num_samples} samples ({more})"

    def text(self) -> str:
        return comparison_text(self)

    def to_json(self) -> dict[str, Any]:
        return {
            "question": "models",
            "verdict": self.verdict,
            "direction": self.direction,
            "models": [answers.side.label for answers in self.answers],
            "split": self.split,
            "data": self.data,
            "task": self.kind,
            "num_samples": self.num_samples,
            "num_left_out": self.num_left_out,
            "metric": self.main.name,
            "enough": self.enough,
            "level": self.level,
            "looks": self.looks.to_json(),
            "fixed": self.test.fixed,
            "broken": self.test.broken,
            "p": self.test.p,
            "metrics": [row.to_json() for row in self.overall],
            "per_class": {"of": OF_CLASS[self.kind], "rows": [row.to_json() for row in self.by_class]},
            "histories": [history.to_json() for history in self.histories],
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "notes": list(self.notes),
            "folder": self.folder,
        }

    @property
    def pictures(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.png")) if self.folder is not None else []

    def changed(self, broken: bool) -> np.ndarray:
        """Places of the samples that B broke, or fixed: what changed most first, then in the order of the samples."""
        change = self.cost[1] - self.cost[0]
        change = change if broken else -change
        places = np.flatnonzero(change > 0)
        if self.kind == "classification":  # by how sure the wrong answer is
            wrong = self.answers[1 if broken else 0]
            change = wrong.scores[np.arange(len(change)), answers_of(wrong)]
        return places[np.argsort(-change[places], kind="stable")]

    def headline(self) -> str:
        """The main metric, its interval, and the samples behind the exact test."""
        row, words = self.main, _EXACT[self.kind]
        return (
            f"{row.name} {row.first:.4f} -> {row.second:.4f}, {row.difference:+.4f} ({percent(self.level)} paired "
            f"interval {row.low:+.4f} to {row.high:+.4f}); {self.test.fixed} {words[0]}, {self.test.broken} "
            f"{words[1]}, {words[2]} {self.test.p:.2g}"
        )

    def class_table(self) -> str:
        """The classes that changed most, either way."""
        rows = self.by_class
        shown = rows if len(rows) <= 2 * _NUM_CLASSES else [*rows[:_NUM_CLASSES], *rows[-_NUM_CLASSES:]]
        left = f", {len(rows) - len(shown)} between them left out" if len(rows) > len(shown) else ""
        cells = [
            (row.name, row.support, row.first, row.second, f"{row.difference:+.4f}", _pair(row))
            for row in shown
        ]
        head = ("class", "samples", "A", "B", "change", "interval, for all classes together")
        return table(f"{OF_CLASS[self.kind]} by class{left}", head, cells)

    def answer_of(self, which: int, place: int) -> str:
        """What a model says of a sample, in words."""
        answers = self.answers[which]
        if self.kind == "classification":
            return answers.classes[int(answers_of(answers)[place])]
        if self.kind == "multi-label":
            wrong = wrong_labels(answers.at(np.array([place])))
            return f"{int(wrong.sum())} labels wrong"
        return f"mIoU {1 - self.cost[which, place]:.3f}"


def _pair(row: Difference) -> str:
    return f"{row.low:+.4f} to {row.high:+.4f}"


def compare_models(
    models: Sequence[Answers],
    split: str,
    fingerprint: str,
    requirements: Sequence[require.Requirement] = (),
    notes: Sequence[str] = (),
    data: DataConfig | None = None,
) -> ModelComparison:
    """Compare the second model with the first, by answers on the same split of data: the runs' own, or of `data`.

    Raises:
        UserError: what `align` refuses, or a requirement about a metric that there is not.
    """
    (first, second), num_left_out = align(models)
    require.check_metrics(requirements, metric_names(first.kind, len(first.classes)))
    found = measure([first, second])
    looks = count_pair([first.side, second.side], split, fingerprint)
    level = LEVEL / looks.num_chances
    overall = differences(found, level)
    by_class = class_differences(found, first.classes, LEVEL / len(first.classes))
    told = [note for side in (first.side, second.side) for note in side.notes]
    prints = {side.data.get("fingerprint") for side in (first.side, second.side)} - {None}
    if len(prints) > 1:
        told.append(
            "the data have changed between the runs: compared on the samples with the same ids and labels"
        )
    for name, answers in (("A", first), ("B", second)):
        if "train" not in split and (num := answers.side.num_trained_on(answers.ids)):
            told.append(f"{name} was trained on {num} of these samples: it is measured too kindly")
    if num_left_out:
        told.append(f"{num_left_out} samples that only one of them was measured on are left out")
    return ModelComparison(
        answers=(first, second),
        split=split,
        num_left_out=num_left_out,
        overall=overall,
        by_class=by_class,
        test=ExactTest.of(found.cost),
        level=level,
        looks=looks,
        histories=histories(first.side, second.side),
        data=told_data([first.side, second.side], data, fingerprint),
        checks=require.check(requirements, overall, by_class),
        notes=(*told, *notes),
        cost=found.cost,
    )
