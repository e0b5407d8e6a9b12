"""Evaluate a model on labelled images: metrics with an interval, tables, pictures, predictions by id."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.samples import EvaluationSet, open_evaluation_set
from warmstart.console import progress
from warmstart.data.batches import evaluation_batches
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictions import write_predictions
from warmstart.inference.predictor import predict_outputs
from warmstart.inference.restore import Restored
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
    chosen = open_evaluation_set(run, data, split, built.classes, restored.names_known)
    if batch_size is None:
        batch_size = run.resolved["eval_batch_size"] if run is not None else 64
    outputs = _outputs(restored, chosen, batch_size, workers)
    task = Classification(built.classes)
    folder = _folder(restored, chosen, output_dir)
    result = Evaluation(
        model=restored.label,
        data=chosen.path,
        split=chosen.split,
        num_samples=len(outputs),
        metrics=task.evaluate(outputs, chosen.targets),
        per_class=task.table(outputs, chosen.targets),
        classes=built.classes,
        run=str(run.path) if run is not None else None,
        folder=str(folder) if folder is not None else None,
        outputs=outputs,
        targets=chosen.targets,
        ids=chosen.ids,
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


def _outputs(restored: Restored, chosen: EvaluationSet, batch_size: int, workers: int) -> np.ndarray:
    built = restored.built
    device = next(built.module.parameters()).device
    inputs = InputBuffer(built.preprocessing, device, built.channels_last)
    batches = chain.from_iterable(
        evaluation_batches(part, built.preprocessing, restored.native, batch_size, workers)
        for part in chosen.samples
    )
    with progress("evaluating", len(chosen.targets)) as bar:
        return predict_outputs(built.module, batches, inputs, restored.precision, bar.update)


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
        name += f"-{Path(chosen.path).resolve().name}"
    return run.path / layout.EVALUATIONS / name


def _write(folder: Path, result: Evaluation, task: Classification) -> None:
    from warmstart.analysis.plots import plot_calibration, plot_confusion

    folder.mkdir(parents=True, exist_ok=True)
    predicted = result.outputs.argmax(axis=1)
    matrix = confusion(result.targets, predicted, len(result.classes))
    scores = task.scores(result.outputs)
    record = {
        key: getattr(result, key) for key in ("model", "data", "split", "num_samples", "metrics", "per_class")
    }
    writer.write_json(folder / "metrics.json", record)
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
