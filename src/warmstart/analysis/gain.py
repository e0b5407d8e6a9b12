"""What a run changed: its best checkpoint against the model it started from, on the same samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.evaluate import Evaluation, evaluate
from warmstart.errors import UserError
from warmstart.inference.predictions import Predictions, read_predictions
from warmstart.inference.restore import restore
from warmstart.records import finite
from warmstart.run import layout, reader, writer
from warmstart.shown import Shown
from warmstart.stats import bootstrap_interval, mcnemar_p
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_metrics import resampled_map
from warmstart.tasks.mask_metrics import paired
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_LEVEL = 0.05
METRIC_WORDS = {"accuracy": "accuracy", "map": "mAP", "miou": "mIoU"}
_CHANGED = {  # what the exact test counts
    "accuracy": ("fixed", "broken", "McNemar p"),
    "map": ("images with fewer wrong labels", "with more", "sign test p"),
    "miou": ("images with a higher mIoU", "with a lower one", "sign test p"),
}


@dataclass(frozen=True)
class Gain(Shown):
    """One split: metrics of the start model (`start_step`) and of the best one, and the paired difference in `metric`.

    `low` and `high` bound the difference in 95 % of bootstrap resamples of the samples. `p` is of the
    exact sign test over the samples that were fixed and broken: with one class per image, wrong before and
    right now (McNemar's test); with sets, fewer wrong labels than before; with masks, a higher mIoU of the
    image. Each model of sets has the thresholds that are best for it on val.
    """

    split: str
    num_samples: int
    start: dict[str, float]
    best: dict[str, float]
    best_step: int
    difference: float
    low: float
    high: float
    fixed: int
    broken: int
    p: float
    metric: str = "accuracy"  # `map` for sets, `miou` for masks
    start_step: int = 0  # not 0 where the count of a parent goes on

    @property
    def verdict(self) -> str:
        """Better or worse only if the interval and the exact test agree; few changed answers prove little."""
        if self.best_step < self.start_step:
            return "nothing better than the parent's best was found, so that was kept"
        if self.best_step == self.start_step:
            return "nothing better than the start was found, so the start was kept"
        chosen = (
            " (the best step was chosen on these samples, so this is too kind)" if self.split == "val" else ""
        )
        if self.p < _LEVEL and self.low > 0 and self.fixed > self.broken:
            return f"better than the start{chosen}"
        if self.p < _LEVEL and self.high < 0 and self.fixed < self.broken:
            return f"worse than the start{chosen}"
        return f"cannot be told from the start with {self.num_samples} samples"

    @property
    def change(self) -> str:
        """The difference with its interval, and the samples behind the test, in words."""
        words = _CHANGED[self.metric]
        return (
            f"{METRIC_WORDS[self.metric]} {self.difference:+.4f} (95 % paired interval {self.low:+.4f} to "
            f"{self.high:+.4f}; {self.fixed} {words[0]}, {self.broken} {words[1]}, {words[2]} {self.p:.2g})"
        )

    def text(self) -> str:
        return f"{self.split}: {self.verdict}: {self.change}"

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "verdict": self.verdict, "change": self.change}


def measure_gains(run_path: Path, device: Any, workers: int) -> tuple[list[Gain], Evaluation]:
    """Evaluate the best checkpoint on val and test and pair it with the predictions of the start.

    Returns the gains and the last evaluation (test where there is one): the run's result.
    """
    run = reader.open_run(run_path)
    restored = restore(str(run_path), device)
    first = run.resolved["pace"].get("first_step", 0)
    start_rows = {row["split"]: row for row in run.evals.rows if row["step"] == first}
    gains: list[Gain] = []
    splits = [name for name in ("val", "test") if name in start_rows] or ["train"]
    result: Evaluation | None = None
    start_task = restored.task
    for split in splits:
        result = evaluate(restored, split=split, workers=workers, choose_thresholds=split == "val")
        path = run.path / layout.PREDICTIONS / layout.predictions_name(split, first)
        if path.exists():
            start = read_predictions(path)
            _check_same(result, start)
            row = start_rows[split]
            metrics = {name: row[name] for name in result.metrics if name in row}
            if isinstance(start_task, MultiLabel):
                if split == "val":
                    start_task = start_task.with_best_thresholds(start.scores, result.targets)
                metrics |= start_task.at_thresholds(start.scores, result.targets)
            gain = _pair(result, restored.reference.step or 0, start, metrics, start_task)
            gains.append(replace(gain, start_step=first))
    assert result is not None, "a run has at least a train split"
    result.draw()  # of the reported split only: `evaluate RUN --split val` draws the others
    writer.write_json(run.path / layout.GAINS, finite([gain.to_json() for gain in gains]))
    return gains, result


def _check_same(result: Evaluation, start: Predictions) -> None:
    if result.ids != start.ids:
        raise UserError(
            f"the {result.split} samples have changed since the run was started",
            "the same images at the start and at the end",
            "leave the data alone while a run is under way",
        )


def _pair(
    result: Evaluation,
    best_step: int,
    start: Predictions,
    start_metrics: dict[str, float],
    start_task: Classification | MultiLabel | Segmentation,
) -> Gain:
    task, targets = result.task, result.targets
    if isinstance(task, Segmentation):
        change = paired(start.scores, result.outputs)
        return Gain(
            result.split,
            result.num_samples,
            start_metrics,
            result.metrics,
            best_step,
            change.difference,
            change.low,
            change.high,
            change.higher,
            change.lower,
            change.p,
            task.metrics[0],
        )
    if isinstance(task, MultiLabel) and isinstance(start_task, MultiLabel):
        scores = task.scores(result.outputs)
        before, after = start_task.num_wrong(start.scores, targets), task.num_wrong(scores, targets)
        resampled = resampled_map([start.scores, scores], targets)
        low, high = np.quantile(resampled[1] - resampled[0], [0.025, 0.975]).tolist()
    else:
        before = (start.scores.argmax(axis=1) != targets).astype(np.int64)
        after = (result.outputs.argmax(axis=1) != targets).astype(np.int64)
        low, high = bootstrap_interval(before - after)
    metric = task.metrics[0]
    difference = result.metrics[metric] - start_metrics[metric]
    if not np.isfinite(difference):
        low = high = np.nan
    fixed, broken = int((after < before).sum()), int((after > before).sum())
    return Gain(
        split=result.split,
        num_samples=result.num_samples,
        start=start_metrics,
        best=result.metrics,
        best_step=best_step,
        difference=difference,
        low=low,
        high=high,
        fixed=fixed,
        broken=broken,
        p=mcnemar_p(fixed, broken),
        metric=metric,
    )
