"""What a run changed: its best checkpoint against the model it started from, on the same samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from warmstart.analysis.evaluate import Evaluation, evaluate
from warmstart.analysis.paired import METRIC_WORDS, Change, Scored, change_between
from warmstart.errors import UserError
from warmstart.inference.predictions import Predictions, read_predictions
from warmstart.inference.restore import Restored, restore
from warmstart.records import RETAIN, finite
from warmstart.run import layout, reader, writer
from warmstart.shown import Shown
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Gain(Change, Shown):
    """One split: metrics of the start model (`start_step`) and of the best one, and how they differ there.

    Each model of sets has the thresholds that are best for it on val; a binary one that chosen for it there.
    """

    split: str
    num_samples: int
    start: dict[str, float]
    best: dict[str, float]
    best_step: int
    start_step: int = 0  # not 0 where the count of a parent goes on
    task: str | None = None  # the one of several

    @property
    def verdict(self) -> str:
        if self.best_step < self.start_step:
            return "nothing better than the parent's best was found, so that was kept"
        if self.best_step == self.start_step:
            return "nothing better than the start was found, so the start was kept"
        chosen = (
            " (the best step was chosen on these samples, so this is too kind)" if self.split == "val" else ""
        )
        if self.split == RETAIN:
            start, best = (
                metrics.get(f"{self.metric}_at_threshold", metrics[self.metric])
                for metrics in (self.start, self.best)
            )
            values = f"({start:.4f} -> {best:.4f})"
            word = METRIC_WORDS[self.metric]
            if self.direction == 0:
                return (
                    f"nothing of {word} can be said to be forgotten with {self.num_samples} samples {values}"
                )
            change = "forgot" if self.direction < 0 else "gained"
            return f"{change} {abs(self.difference):.4f} of {word} {values}"
        if self.direction == 0:
            return f"cannot be told from the start with {self.num_samples} samples"
        return f"{'better' if self.direction > 0 else 'worse'} than the start{chosen}"

    def text(self) -> str:
        return f"{self.where}: {self.verdict}: {self.change}"

    @property
    def where(self) -> str:
        """The split, and the task where there are several."""
        return self.split if self.task is None else f"{self.split} of {self.task}"

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "verdict": self.verdict, "change": self.change}


def measure_gains(
    run_path: Path, device: Any, workers: int, pictures: bool = True
) -> tuple[list[Gain], list[Evaluation]]:
    """Evaluate the best checkpoint on val and test and pair it with the predictions of the start.

    Returns the gains and the last evaluation (test where there is one): the run's result. Of several tasks, that of
    each that was trained.
    """
    run = reader.open_run(run_path)
    gains: list[Gain] = []
    results: list[Evaluation] = []
    for task in run.tasks or (None,):
        restored = restore(str(run_path), device, task=None if task is None else task["name"])
        assert restored.reference.run is not None, "a run is restored"
        if task is not None and not task["trained"]:
            step, known = restored.reference.step or 0, restored.task
            gains += _forgotten(restored.reference.run, step, Compared(known, known))
            continue
        found, result = _gains_of(restored.reference.run, restored, workers)
        gains, results = gains + found, [*results, result]
        if pictures:  # of the reported split only: `evaluate RUN --split val` draws the others
            result.draw()
    writer.write_json(run.path / layout.GAINS, finite([gain.to_json() for gain in gains]))
    return gains, results


def _gains_of(run: reader.Run, restored: Restored, workers: int) -> tuple[list[Gain], Evaluation]:
    """Those of a run, or of one of its tasks."""
    first = run.resolved["pace"].get("first_step", 0)
    start_rows = {row["split"]: row for row in run.evals.rows if row["step"] == first}
    gains: list[Gain] = []
    splits = [name for name in ("val", "test") if name in start_rows] or ["train"]
    result: Evaluation | None = None
    start_task = restored.task
    for split in splits:
        result = evaluate(restored, split=split, workers=workers, choose_thresholds=split == "val")
        path = run.predictions(split, first)
        if path.exists():
            start = read_predictions(path)
            _check_same(result, start)
            row = start_rows[split]
            metrics = {name: row[name] for name in result.metrics if name in row}
            if isinstance(start_task, MultiLabel):
                if split == "val":
                    start_task = start_task.with_best_thresholds(start.scores, result.targets)
                metrics |= start_task.at_thresholds(start.scores, result.targets)
            before = Scored(_as_measured(start_task, metrics), start.scores, metrics)
            after = Scored(result.task, result.task.scores(result.outputs), result.metrics)
            gains.append(
                Gain(
                    **vars(change_between(before, after, result.targets)),
                    split=split,
                    num_samples=result.num_samples,
                    start=metrics,
                    best=result.metrics,
                    best_step=restored.reference.step or 0,
                    start_step=first,
                    task=run.task,
                )
            )
    assert result is not None, "a run has at least a train split"
    gains += _forgotten(run, restored.reference.step or 0, Compared(start_task, result.task))
    return gains, result


class Compared(NamedTuple):
    """The tasks of the start and of the best model: those of sets have thresholds of their own."""

    start: Classification | MultiLabel | Segmentation
    best: Classification | MultiLabel | Segmentation


def _forgotten(run: reader.Run, best_step: int, tasks: Compared) -> list[Gain]:
    """What the best model has lost of the data set of --retain, by predictions that training has kept."""
    first = run.resolved["pace"].get("first_step", 0)
    rows = {row["step"]: row for row in run.evals.rows if row["split"] == RETAIN}
    paths = [run.predictions(RETAIN, step) for step in (first, best_step)]
    if not all(path.exists() for path in paths):  # a parent's best, which was measured in the parent
        return []
    start, best = map(read_predictions, paths)
    known = ("step", "epoch", "split", "task", "num_samples", "kind")
    metrics = [
        {name: value for name, value in rows[step].items() if name not in known}
        for step in (first, best_step)
    ]
    targets = start.targets if start.targets is not None else np.zeros(0, np.int64)
    change = change_between(
        Scored(_as_measured(tasks.start, metrics[0]), start.scores, metrics[0]),
        Scored(_as_measured(tasks.best, metrics[1]), best.scores, metrics[1]),
        targets,
    )
    return [
        Gain(
            **vars(change),
            split=RETAIN,
            num_samples=len(start.ids),
            start=metrics[0],
            best=metrics[1],
            best_step=best_step,
            start_step=first,
            task=run.task,
        )
    ]


def _as_measured(
    task: Classification | MultiLabel | Segmentation, metrics: dict[str, float]
) -> Classification | MultiLabel | Segmentation:
    """A binary task with the threshold with which these metrics were measured; others as they are."""
    if not isinstance(task, Classification) or task.decision is None:
        return task
    return replace(task, decision=replace(task.decision, threshold=metrics.get("threshold")))


def _check_same(result: Evaluation, start: Predictions) -> None:
    if result.ids != start.ids:
        raise UserError(
            f"the {result.split} samples have changed since the run was started",
            "the same images at the start and at the end",
            "leave the data alone while a run is under way",
        )
