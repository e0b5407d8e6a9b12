"""Evaluate a model on labelled images: metrics with an interval, tables, pictures, predictions by id."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, targets_for
from warmstart.console import progress, table
from warmstart.errors import UserError
from warmstart.inference.predictions import write_predictions
from warmstart.inference.restore import Restored
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.tasks.classification import Classification
from warmstart.tasks.metrics import confusion


@dataclass(frozen=True)
class Evaluation:
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
        )
        return {name: getattr(self, name) for name in names}

    def text(self) -> str:
        """What `evaluate` prints: the metrics with their interval, and a row per class."""
        m = self.metrics
        rows = [(r["name"], r["precision"], r["recall"], r["f1"], r["support"]) for r in self.per_class]
        top5 = f"top-5 {m['top5']:.4f}  " if "top5" in m else ""
        kept = self.folder or "not kept; pass --output-dir to keep tables and pictures"
        return (
            f"{self.model} on {self.split} of {self.data}: {self.num_samples} images\n"
            f"accuracy {m['accuracy']:.4f} (95 % interval {m['accuracy_low']:.4f} to {m['accuracy_high']:.4f})  "
            f"{top5}f1 {m['f1']:.4f}  balanced accuracy {m['balanced_accuracy']:.4f}  "
            f"loss {m['loss']:.4f}  calibration error {m['ece']:.4f}\n\n"
            f"{table('', ('class', 'precision', 'recall', 'f1', 'support'), rows)}\n\n"
            f"tables and pictures: {kept}"
        )


def evaluate(
    restored: Restored,
    data: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    output_dir: str | None = None,
) -> Evaluation:
    """Run the model over the chosen split (default: test, else val) and measure it.

    With the run's own batch size (the default) the outputs equal those of validation to the bit.

    Raises:
        UserError: no data, no such split, classes the model does not have, or an output folder in use.
    """
    built, run = restored.built, restored.reference.run
    chosen = open_evaluation_set(run, data, split)
    targets = targets_for(chosen, built)
    folder = _folder(restored, chosen, output_dir)
    with progress("evaluating", len(chosen.targets)) as bar:
        outputs = restored.outputs(chosen.samples, batch_size, workers, bar.update)
    task = Classification(built.classes)
    result = Evaluation(
        model=restored.label,
        data=chosen.path,
        split=chosen.split,
        num_samples=len(outputs),
        metrics=task.evaluate(outputs, targets),
        per_class=task.table(outputs, targets),
        classes=built.classes,
        run=str(run.path) if run is not None else None,
        folder=str(folder) if folder is not None else None,
        outputs=outputs,
        targets=targets,
        ids=chosen.ids,
        unreadable=chosen.unreadable,
    )
    if folder is not None:
        _write(folder, result, task)
    if run is not None and chosen.is_own and not restored.overridden:
        row = {
            "step": restored.reference.step,
            "split": chosen.split,
            "num_samples": len(outputs),
            **result.metrics,
        }
        writer.append_row(run.path / layout.EVALS, {"kind": "evaluate", **row})
    return result


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
    name = f"{chosen.split.replace(',', '+')}@{restored.reference.step}"
    if not chosen.is_own:
        name += f"-{Path(chosen.path).resolve().name}-{chosen.fingerprint[:6]}"  # folders may share a name
    return run.path / layout.EVALUATIONS / name


def _write(folder: Path, result: Evaluation, task: Classification) -> None:
    from warmstart.analysis.plots import plot_calibration, plot_confusion

    folder.mkdir(parents=True, exist_ok=True)
    predicted = result.outputs.argmax(axis=1)
    matrix = confusion(result.targets, predicted, len(result.classes))
    scores = task.scores(result.outputs)
    writer.write_json(folder / "metrics.json", finite(result.to_json()))
    writer.write_text(folder / "confusion.csv", confusion_csv(matrix, result.classes))
    writer.write_whole(
        folder / "predictions.parquet", write_predictions(result.ids, result.targets, scores, result.classes)
    )
    plot_confusion(matrix, result.classes, folder / "confusion.png")
    plot_calibration(scores.max(axis=1), predicted == result.targets, folder / "calibration.png")


def confusion_csv(matrix: np.ndarray, classes: tuple[str, ...]) -> str:
    """Rows are targets, columns predictions."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("target \\ predicted", *classes))
    for name, counts in zip(classes, matrix.tolist(), strict=True):
        rows.writerow((name, *counts))
    return text.getvalue()
