"""Tables and pictures of one evaluation, written to its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.run import layout, writer
from warmstart.tasks.classification import Classification
from warmstart.tasks.metrics import confusion
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

AnyTask = Classification | MultiLabel | Segmentation

# As document 004 calls them.
RESULTS, REPORT = layout.RESULTS, "evaluation_report.txt"
CONFUSION, PERFORMANCE = "confusion_matrix.png", "class_performance.png"


def write_tables(folder: Path, task: AnyTask, outputs: np.ndarray, targets: np.ndarray) -> None:
    """One class per image: the confusion matrix. Sets: a row per label. Masks: a row per class."""
    if isinstance(task, (MultiLabel, Segmentation)):
        kind = "label" if isinstance(task, MultiLabel) else "class"
        text = rows_csv(task.table(outputs, targets), kind, task.columns)
        writer.write_text(folder / ("labels.csv" if kind == "label" else "classes.csv"), text)
    else:
        matrix = confusion(targets, task.answers(outputs), len(task.classes))
        writer.write_text(folder / layout.CONFUSION_TABLE, confusion_csv(matrix, task.classes))


def draw_pictures(folder: Path, task: AnyTask, outputs: np.ndarray, targets: np.ndarray) -> None:
    """One class per image: confusion matrix, scores by class, calibration. Sets: the labels. Masks: the classes."""
    if isinstance(task, Segmentation):
        from warmstart.analysis.mask_plots import plot_classes

        plot_classes(task.table(outputs, targets), folder / "classes.png")
        return
    if isinstance(task, MultiLabel):
        from warmstart.analysis.label_plots import plot_labels

        plot_labels(task.table(outputs, targets), folder / "labels.png")
        return
    from warmstart.analysis.label_plots import plot_performance
    from warmstart.analysis.plots import plot_calibration, plot_confusion

    matrix = confusion(targets, task.answers(outputs), len(task.classes))
    plot_confusion(matrix, task.classes, folder / CONFUSION)
    plot_performance(task.table(outputs, targets), folder / PERFORMANCE)
    predicted = outputs.argmax(axis=1)
    plot_calibration(task.scores(outputs).max(axis=1), predicted == targets, folder / "calibration.png")


def confusion_csv(matrix: np.ndarray, classes: tuple[str, ...]) -> str:
    """Rows are targets, columns predictions."""
    return rows_text(
        ("target \\ predicted", *classes),
        [(name, *counts) for name, counts in zip(classes, matrix.tolist(), strict=True)],
    )


def rows_csv(rows: Sequence[dict[str, Any]], kind: str, columns: Sequence[str]) -> str:
    """A row per label or class: see the `table` of a task."""
    return rows_text((kind, *columns), [(row["name"], *(row[name] for name in columns)) for row in rows])


def rows_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The content of a CSV file."""
    text = io.StringIO()
    writes = csv.writer(text)
    writes.writerow(header)
    writes.writerows(rows)
    return text.getvalue()
