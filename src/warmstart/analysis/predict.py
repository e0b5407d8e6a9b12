"""Classes of unlabelled images, with scores and ids."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from warmstart.console import progress, table
from warmstart.data.samples import Samples
from warmstart.data.scan import ScanResult, scan
from warmstart.data.sources import open_images
from warmstart.errors import UserError
from warmstart.inference.restore import Restored
from warmstart.run import writer
from warmstart.shown import Shown
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_NUM_SHOWN, _TOP = 20, 5
_FILES = (".csv", ".json")


@dataclass(frozen=True)
class Prediction:
    """One image: its answer, then the other classes with the highest scores, best first."""

    id: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    # (name, score), best first; None: one class per image.
    labels: tuple[tuple[str, float], ...] | None = None


@dataclass(frozen=True)
class PredictionResult(Shown):
    """What was predicted, and the images that could not be read: (id, reason)."""

    run: str | None
    model: str
    predictions: list[Prediction]
    unreadable: tuple[tuple[str, str], ...]
    seconds: float  # from the files to the scores
    notes: tuple[str, ...] = ()

    @property
    def _are_sets(self) -> bool:
        return any(p.labels is not None for p in self.predictions)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"id": p.id, **_answer(p), "top": _named(zip(p.classes, p.scores, strict=True))}
            for p in self.predictions
        ]
        unreadable = [{"id": name, "reason": reason} for name, reason in self.unreadable]
        return {
            "run": self.run,
            "model": self.model,
            "num_samples": len(rows),
            **timing(self.seconds, len(rows)),
            "predictions": rows,
            "unreadable": unreadable,
        }

    def text(self) -> str:
        """A table of the first images, the time, and what could not be read."""
        rows = [
            (p.id, *_labels_text(p), *(f"{c} {s:.3f}" for c, s in zip(p.classes, p.scores, strict=True)))
            for p in self.predictions[:_NUM_SHOWN]
        ]
        depth = max(len(p.classes) for p in self.predictions)
        head = ("image", *(("labels",) if self._are_sets else ()), "best", *("next",) * (depth - 1))
        lines = [table("", head, rows, left=len(head)), *self.notes]
        more = len(self.predictions) - len(rows)
        if more > 0:
            lines.append(f"... and {more} more images; --output NAME.csv writes them all")
        return "\n".join([*lines, *closing(self.seconds, len(self.predictions), self.unreadable)])

    def to_csv(self) -> str:
        """One row per image: id, for sets the set `a|b` and its scores, class and score of the top classes."""
        depth = max((len(p.classes) for p in self.predictions), default=1)
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(
            (
                "id",
                *(("labels", "scores") if self._are_sets else ()),
                *(f"{word}_{rank}" for rank in range(1, depth + 1) for word in ("class", "score")),
            )
        )
        for p in self.predictions:
            pairs = zip(p.classes, p.scores, strict=True)
            sets = (
                ()
                if p.labels is None
                else (_joined(c for c, _ in p.labels), _joined(f"{s:.6f}" for _, s in p.labels))
            )
            rows.writerow((p.id, *sets, *(cell for c, s in pairs for cell in (c, f"{s:.6f}"))))
        return text.getvalue()


def timing(seconds: float, num: int) -> dict[str, float]:
    """What a result's JSON says about the time of `num` images."""
    return {"seconds": round(seconds, 4), "milliseconds_per_image": round(1000 * seconds / num, 3)}


def closing(seconds: float, num: int, unreadable: tuple[tuple[str, str], ...]) -> list[str]:
    """The lines below a table of predictions: the time of the `num` images, and (id, reason) of what was left out."""
    lines = [
        f"{num} image{'s' if num > 1 else ''} in {seconds:.2f} s, {1000 * seconds / num:.1f} ms per image with reading"
    ]
    if unreadable:
        lines.append(
            f"{len(unreadable)} of {num + len(unreadable)} images could not be read and have no answer:"
        )
    return [*lines, *(f"unreadable: {name}: {reason}" for name, reason in unreadable)]


def _answer(prediction: Prediction) -> dict[str, Any]:
    if prediction.labels is not None:
        return {"labels": _named(prediction.labels)}
    return {"class": prediction.classes[0], "score": prediction.scores[0]}


def _named(pairs: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "score": score} for name, score in pairs]


def _joined(parts: Iterable[str]) -> str:
    """As a label column of sets is written."""
    return "|".join(parts)


def _labels_text(prediction: Prediction) -> tuple[str, ...]:
    """The cell of the set, if there is one."""
    if prediction.labels is None:
        return ()
    return (", ".join(name for name, _ in prediction.labels) or "none",)


def predict(
    restored: Restored, images: list[str], top_k: int = _TOP, batch_size: int | None = None, workers: int = 0
) -> PredictionResult:
    """Predict files and folders (searched below). Unreadable images are listed, never guessed.

    Raises:
        UserError: a path that does not exist, no image at all, or none that can be read.
    """
    built = restored.built
    readable, unreadable = readable_samples(restored, images, workers)
    with progress("predicting", len(readable)) as bar:
        started = perf_counter()
        outputs = restored.outputs([readable], batch_size, workers, bar.update)
        seconds = perf_counter() - started
    task = restored.task
    assert not isinstance(task, Segmentation), "masks are predicted by predict_masks"
    scores = task.scores(outputs)
    best = np.argsort(-scores, axis=1, kind="stable")
    if isinstance(task, Classification):  # the answer first, which need not have the highest score
        best = np.take_along_axis(
            best, (best != task.answers(outputs)[:, None]).argsort(axis=1, kind="stable"), 1
        )
    notes = _notes(task, outputs)
    best = best[:, : min(top_k, len(built.classes))]
    predictions = [
        Prediction(
            name, tuple(built.classes[c] for c in row), tuple(float(s[c]) for c in row), _labels(task, s)
        )
        for name, row, s in zip(readable.ids, best.tolist(), scores, strict=True)
    ]
    run = restored.reference.run
    return PredictionResult(
        str(run.path) if run is not None else None, restored.label, predictions, unreadable, seconds, notes
    )


def readable_samples(
    restored: Restored, images: list[str], workers: int
) -> tuple[Samples, tuple[tuple[str, str], ...]]:
    """The images that can be read and that the model can take, and (id, reason) of the others.

    Raises UserError as `predict`.
    """
    samples = open_images([Path(image) for image in images])
    scanned = scan(samples, workers)
    rows, unreadable = _usable(samples, scanned, restored.built.preprocessing.num_channels)
    if not len(rows):
        name, reason = unreadable[0]
        raise UserError(f"none of the {len(samples)} images can be read; {name}: {reason}", "readable images")
    return samples.subset(rows), unreadable


def _usable(
    samples: Samples, scanned: ScanResult, num_channels: int
) -> tuple[np.ndarray, tuple[tuple[str, str], ...]]:
    """Indices of the images that the model can take, and (id, reason) of the others."""
    found = scanned.channels
    fits = (found == num_channels) | (np.isin(found, (1, 3)) & (num_channels in (1, 3)))
    odd = tuple(
        (samples.ids[row], f"{found[row]} channels, and the model takes {num_channels}")
        for row in scanned.good
        if not fits[row]
    )
    return scanned.good[fits[scanned.good]], (*scanned.corrupt, *odd)


def _labels(task: Classification | MultiLabel, scores: np.ndarray) -> tuple[tuple[str, float], ...] | None:
    """The labels of one image whose scores (K,) reach their thresholds, best first."""
    if not isinstance(task, MultiLabel):
        return None
    reached = np.flatnonzero(scores >= task.cuts)
    ordered = reached[np.argsort(-scores[reached], kind="stable")]
    return tuple((task.classes[k], float(scores[k])) for k in ordered.tolist())


def _notes(task: Classification | MultiLabel, outputs: np.ndarray) -> tuple[str, ...]:
    decision = task.decision if isinstance(task, Classification) else None
    if isinstance(task, Classification) and decision is not None and decision.threshold is not None:
        num_other = int((task.answers(outputs) != outputs.argmax(axis=1)).sum())
        return (
            f"the answer is {decision.positive} from a score of {decision.threshold:.4f} on ({decision.origin}); "
            f"at .5 it would be another one for {num_other} of {len(outputs)} images",
        )
    if isinstance(task, MultiLabel) and task.thresholds is None:
        return ("thresholds: 0.5 for every label, as none are recorded for these weights",)
    return ()


def check_request(top_k: int | None, output: str | None) -> None:
    """What can be said before a model is loaded: `output` is a file of a known kind, or has no suffix (a folder).

    Raises:
        UserError: another suffix, a file that exists, or fewer than one class per image.
    """
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k {top_k}", "1 or more")
    if output is None:
        return
    suffix = Path(output).suffix
    if suffix and suffix not in _FILES:
        raise UserError(
            f"--output {output} has the suffix {suffix!r}", "NAME.csv or NAME.json; a folder for masks"
        )
    if suffix and Path(output).exists():
        raise UserError(f"--output {output} exists already", "a new file", "choose another name")


def classify(
    restored: Restored,
    images: list[str],
    request: tuple[int | None, str | None, str | None, bool | None],
    batch_size: int | None,
    workers: int,
) -> PredictionResult:
    """`predict`, and its file if one was asked for; `request` is top_k, output, scales and flip.

    Raises:
        UserError: what only masks have was asked for; otherwise as `predict`.
    """
    top_k, output, scales, flip = request
    if scales is not None or flip:
        raise UserError(
            f"--{'scales' if scales is not None else 'flip'}: {restored.built.name} gives one class per image",
            "a segmenting model",
            "leave it out",
        )
    if output is not None and Path(output).suffix not in _FILES:
        raise UserError(f"--output {output} has no suffix", "NAME.csv or NAME.json")
    result = predict(restored, images, top_k or _TOP, batch_size, workers)
    if output is not None:
        write_predictions_file(result, Path(output))
    return result


def write_predictions_file(result: PredictionResult, path: Path) -> None:
    """CSV or JSON, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        result.to_csv()
        if path.suffix == ".csv"
        else json.dumps(result.to_json(), indent=1, ensure_ascii=False)
    )
    writer.write_text(path, text)
