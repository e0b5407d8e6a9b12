"""Classes of unlabelled images, with scores and ids."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.console import progress, table
from warmstart.data.scan import scan
from warmstart.data.sources import open_images
from warmstart.errors import UserError
from warmstart.inference.restore import Restored
from warmstart.run import writer
from warmstart.tasks.classification import Classification

_NUM_SHOWN = 20


@dataclass(frozen=True)
class Prediction:
    """One image: the classes with the highest scores, best first."""

    id: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class PredictionResult:
    """What was predicted, and the images that could not be read: (id, reason)."""

    run: str | None
    model: str
    predictions: list[Prediction]
    unreadable: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "id": p.id,
                "class": p.classes[0],
                "score": p.scores[0],
                "top": [{"class": c, "score": s} for c, s in zip(p.classes, p.scores, strict=True)],
            }
            for p in self.predictions
        ]
        unreadable = [{"id": name, "reason": reason} for name, reason in self.unreadable]
        return {
            "run": self.run,
            "model": self.model,
            "num_samples": len(rows),
            "predictions": rows,
            "unreadable": unreadable,
        }

    def text(self) -> str:
        """A table of the first images, and what could not be read."""
        rows = [
            (p.id, *(f"{name} {score:.3f}" for name, score in zip(p.classes, p.scores, strict=True)))
            for p in self.predictions[:_NUM_SHOWN]
        ]
        depth = max(len(p.classes) for p in self.predictions)
        lines = [table("", ("image", "best", *("next",) * (depth - 1)), rows, left=depth + 1)]
        more = len(self.predictions) - len(rows)
        if more > 0:
            lines.append(f"... and {more} more images; --output NAME.csv writes them all")
        lines += [f"unreadable: {name}: {reason}" for name, reason in self.unreadable]
        return "\n".join(lines)

    def to_csv(self) -> str:
        """One row per image: id, class and score for each of the top classes."""
        depth = max((len(p.classes) for p in self.predictions), default=1)
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(
            ("id", *(f"{word}_{rank}" for rank in range(1, depth + 1) for word in ("class", "score")))
        )
        for p in self.predictions:
            pairs = zip(p.classes, p.scores, strict=True)
            rows.writerow((p.id, *(cell for c, s in pairs for cell in (c, f"{s:.6f}"))))
        return text.getvalue()


def predict(
    restored: Restored, images: list[str], top_k: int = 5, batch_size: int | None = None, workers: int = 0
) -> PredictionResult:
    """Predict files and folders (searched below). Unreadable images are listed, never guessed.

    Raises:
        UserError: a path that does not exist, no image at all, or none that can be read.
    """
    built = restored.built
    samples = open_images([Path(image) for image in images])
    scanned = scan(samples, workers)
    readable = samples.subset(scanned.good)
    if not len(readable):
        name, reason = scanned.corrupt[0]
        raise UserError(f"none of the {len(samples)} images can be read; {name}: {reason}", "readable images")
    with progress("predicting", len(readable)) as bar:
        outputs = restored.outputs([readable], batch_size, workers, bar.update)
    scores = Classification(built.classes).scores(outputs)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : min(top_k, len(built.classes))]
    predictions = [
        Prediction(name, tuple(built.classes[c] for c in row), tuple(float(s[c]) for c in row))
        for name, row, s in zip(readable.ids, best.tolist(), scores, strict=True)
    ]
    run = restored.reference.run
    return PredictionResult(
        str(run.path) if run is not None else None, restored.label, predictions, scanned.corrupt
    )


def check_output(path: Path) -> None:
    """
    Raises:
        UserError: a suffix other than .csv or .json, or a file that exists.
    """
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"--output {path} has the suffix {path.suffix!r}", "NAME.csv or NAME.json")
    if path.exists():
        raise UserError(f"--output {path} exists already", "a new file", "choose another name")


def write_predictions_file(result: PredictionResult, path: Path) -> None:
    """CSV or JSON, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        result.to_csv()
        if path.suffix == ".csv"
        else json.dumps(result.to_json(), indent=1, ensure_ascii=False)
    )
    writer.write_text(path, text)
