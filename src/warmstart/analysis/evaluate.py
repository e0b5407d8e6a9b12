"""Evaluate a model on labelled images: metrics with an interval, tables, pictures, predictions by id."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis import evaluation_report
from warmstart.analysis.evaluation_files import REPORT, RESULTS, draw_pictures, write_tables
from warmstart.analysis.mistakes import MISLABELLED, draw_mistakes, write_mistakes
from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, task_and_targets
from warmstart.analysis.zero_shot import ZeroShot, zero_shot_in
from warmstart.config.schema import DataConfig
from warmstart.console import progress, table
from warmstart.data.samples import Samples
from warmstart.errors import UserError
from warmstart.inference.predictions import write_predictions
from warmstart.inference.restore import Restored
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.shown import Shown
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_metrics import resampled_map
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Evaluation(Shown):
    """What one evaluation found; `folder` holds its tables and pictures, if any were kept."""

    model: str
    data: str
    split: str
    num_samples: int
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    classes: tuple[str, ...]
    run: str | None
    folder: str | None
    outputs: np.ndarray
    targets: np.ndarray
    ids: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]  # (id, reason) of images that were left out
    task: Classification | MultiLabel | Segmentation
    samples: tuple[Samples, ...] = field(repr=False)
    num_mislabelled: int = 0  # images whose label the model contradicts: see mislabelled.csv
    zero_shot: ZeroShot | None = None

    def to_json(self) -> dict[str, Any]:
        names = (
            "run",
            "model",
            "data",
            "split",
            "num_samples",
            "metrics",
            "per_class",
            "folder",
            "unreadable",
            "num_mislabelled",
        )
        zero_shot = None if self.zero_shot is None else self.zero_shot.to_json()
        return {**{name: getattr(self, name) for name in names}, "zero_shot": zero_shot, **self._beyond}

    @cached_property
    def _beyond(self) -> dict[str, Any]:
        """Averages and intervals of one class per image."""
        if not isinstance(self.task, Classification):
            return {}
        return evaluation_report.results(self.task, self.outputs, self.targets)

    def text(self) -> str:
        """What `evaluate` prints: the metrics with their interval, and a row per class."""
        names = self.task.columns
        rows = [(r["name"], *(r[name] for name in names)) for r in self.per_class]
        means = self._beyond.get("averages", {})
        rows += [(f"{kind} average", *(mean[name] for name in names)) for kind, mean in means.items()]
        told = "".join(f"{line}\n" for line in evaluation_report.lines(self._beyond)) if means else ""
        kept = self.folder or "not kept; pass --output-dir to keep tables and pictures"
        how = "" if self.zero_shot is None else f", {self.zero_shot.text},"
        return (
            f"{self.model}{how} on {self.split} of {self.data}: {self.num_samples} images\n{self._quality()}\n\n"
            f"{table('', ('class', *names), rows)}\n\n{told}{self._suspects()}tables and pictures: {kept}"
        )

    def _suspects(self) -> str:
        if not self.num_mislabelled:
            return ""
        why = ""
        if self.zero_shot is not None:
            why = " to a model that no training has shown these classes: many may be its own mistakes"
        elif "train" in self.split.split(","):
            why = " (of images that the model was trained on it finds fewer than there are)"
        return f"{self.num_mislabelled} images look mislabelled{why}: {MISLABELLED}.csv\n"

    @property
    def pictures(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.png")) if self.folder is not None else []

    def draw(self) -> Evaluation:
        """The same, after its pictures were drawn into its folder, if it has one."""
        if self.folder is not None:
            draw_pictures(Path(self.folder), self.task, self.outputs, self.targets)
            if isinstance(self.task, Classification):
                draw_mistakes(Path(self.folder), self.task, self.outputs, self.targets, self.samples)
        return self

    def _quality(self) -> str:
        m = self.metrics
        if isinstance(self.task, Segmentation):
            interval = f"95 % interval {m['miou_low']:.4f} to {m['miou_high']:.4f}"
            rest = ("fscore", "fscore_per_image", "fscore_per_batch", "accuracy", "loss")
            lines = [
                f"mIoU {m['miou']:.4f} ({interval})  " + "  ".join(f"{name} {m[name]:.4f}" for name in rest)
            ]
            return "\n".join(lines + [f"{name}: {words}" for name, words in self.task.definitions.items()])
        if isinstance(self.task, MultiLabel):
            chosen = "0.5 for every label: none are recorded for these weights"
            if self.task.thresholds is not None:
                where = layout.THRESHOLDS if self.run is not None else "as the file says"
                chosen = f"chosen on the run's val split ({where})"
            return (
                f"mAP {m['map']:.4f} (95 % interval {m['map_low']:.4f} to {m['map_high']:.4f})  f1 {m['f1']:.4f}  "
                f"micro f1 {m['f1_micro']:.4f}  exact match {m['exact_match']:.4f}  loss {m['loss']:.4f}\n"
                f"thresholds: {chosen}"
            )
        top5 = f"top-5 {m['top5']:.4f}  " if "top5" in m else ""
        return (
            f"accuracy {m['accuracy']:.4f} (95 % interval {m['accuracy_low']:.4f} to {m['accuracy_high']:.4f})  "
            f"{top5}f1 {m['f1']:.4f}  balanced accuracy {m['balanced_accuracy']:.4f}  "
            f"loss {m['loss']:.4f}  calibration error {m['ece']:.4f}{self._positive_quality()}"
        )

    def _positive_quality(self) -> str:
        """Of two classes: what the positive one has at equal scores, and at the threshold in force."""
        assert isinstance(self.task, Classification)
        if not self.task.is_binary:
            return ""
        m, name = self.metrics, self.task.classes[self.task.positive]
        rows = [("at .5", "")]
        if self.task.decision is not None and "threshold" in m:
            told = f"from {m['threshold']:.4f} on ({self.task.decision.origin})"
            rows.append((told, "_at_threshold"))
        return "".join(
            f"\n{name} is positive, {place}: f1 {m[f'f1_positive{end}']:.4f}  precision "
            f"{m[f'precision_positive{end}']:.4f}  recall {m[f'recall_positive{end}']:.4f}  accuracy "
            f"{m[f'accuracy{end}']:.4f}"
            for place, end in rows
        )


def evaluate(
    restored: Restored,
    data: DataConfig | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    output_dir: str | None = None,
    choose_thresholds: bool = False,
) -> Evaluation:
    """Run the model over the chosen split (default: test, else val) and measure it; `draw()` adds the pictures.

    `choose_thresholds` (val of a multi-label run only) takes those of highest F1 there, and records them.
    With the run's own batch size (the default) the outputs equal those of validation to the bit.

    Raises:
        UserError: no data, no such split, classes the model does not have, or an output folder in use.
    """
    built, run = restored.built, restored.reference.run
    chosen = open_evaluation_set(run, data, split, built)
    task, targets = task_and_targets(chosen, restored)
    folder = _folder(restored, chosen, output_dir)
    with progress("evaluating", len(chosen.targets)) as bar:
        outputs = restored.outputs(chosen.samples, batch_size, workers, bar.update, task)
    metrics: dict[str, float] = {}
    if isinstance(task, MultiLabel):
        scores = task.scores(outputs)
        if choose_thresholds and chosen.is_own and np.isfinite(outputs).all():
            task = _record_thresholds(restored, chosen, task, scores, targets)
        metrics["map_low"], metrics["map_high"] = map_interval(task, outputs, targets)
    metrics = {**task.evaluate(outputs, targets), **metrics}
    result = Evaluation(
        model=restored.label,
        data=chosen.path,
        split=chosen.split,
        num_samples=len(outputs),
        metrics=metrics,
        per_class=task.table(outputs, targets),
        classes=built.classes,
        run=str(run.path) if run is not None else None,
        folder=str(folder) if folder is not None else None,
        outputs=outputs,
        targets=targets,
        ids=chosen.ids,
        unreadable=chosen.unreadable,
        task=task,
        samples=chosen.samples,
        zero_shot=zero_shot_in(restored),
    )
    if folder is not None:
        result = replace(result, num_mislabelled=_write(folder, result))
    if run is not None and chosen.is_own and not restored.overridden:
        row = {
            "step": restored.reference.step,
            "split": chosen.split,
            **({} if run.task is None else {"task": run.task}),
            "num_samples": len(outputs),
            **result.metrics,
        }
        writer.append_row(run.path / layout.EVALS, {"kind": "evaluate", **row})
    return result


def _record_thresholds(
    restored: Restored, chosen: EvaluationSet, task: MultiLabel, scores: np.ndarray, targets: np.ndarray
) -> MultiLabel:
    """The task with the best thresholds of val, which are kept in the run."""
    run = restored.reference.run
    assert run is not None and chosen.split == "val", f"thresholds from {chosen.split}"
    found = task.with_best_thresholds(scores, targets)
    assert found.thresholds is not None
    record = {
        "step": restored.reference.step,
        "split": chosen.split,
        "num_samples": len(targets),
        "thresholds": dict(zip(task.classes, found.thresholds, strict=True)),
    }
    writer.write_json(run.path / layout.of_task(layout.THRESHOLDS, run.task), record)
    return found


def _folder(restored: Restored, chosen: EvaluationSet, output_dir: str | None) -> Path | None:
    """Where tables and pictures go: as told, else into the run, else nowhere."""
    if output_dir is not None:
        folder = Path(output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"--output-dir {folder} is in use", "a new or empty folder", "choose another name"
            )
        return folder
    run = restored.reference.run
    if run is None or restored.overridden:
        return None
    name = f"{layout.of_task(chosen.split.replace(',', '+'), run.task)}@{restored.reference.step}"
    if not chosen.is_own:
        name += f"-{Path(chosen.path).resolve().name}-{chosen.fingerprint[:6]}"  # folders may share a name
    return run.path / layout.EVALUATIONS / name


def _write(folder: Path, result: Evaluation) -> int:
    """Everything but the pictures; how many images look mislabelled."""
    folder.mkdir(parents=True, exist_ok=True)
    scores, num = result.task.scores(result.outputs), 0
    if isinstance(result.task, Classification):
        num = write_mistakes(folder, result.task, result.outputs, result.targets, result.ids)
    result = replace(result, num_mislabelled=num)
    writer.write_json(folder / RESULTS, finite(result.to_json()))
    writer.write_text(folder / REPORT, result.text() + "\n")
    targets = result.targets if result.task.statistics is None else None
    writer.write_whole(
        folder / "predictions.parquet", write_predictions(result.ids, targets, scores, result.classes)
    )
    write_tables(folder, result.task, result.outputs, result.targets)
    return num


def map_interval(task: MultiLabel, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(low, high) of mAP in 95 % of bootstrap resamples of the images.

    NaN where no image has a label, and where an output is not finite, as mAP itself is.
    """
    values = resampled_map([task.scores(outputs)], targets)[0]
    if not values.size or not np.isfinite(outputs).all():
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
