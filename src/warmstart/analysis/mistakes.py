"""The images of an evaluation to look at: the most confident mistakes, and what looks mislabelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from warmstart.analysis.evaluation_files import rows_text
from warmstart.data.decode import to_channels
from warmstart.data.samples import Samples
from warmstart.run import writer
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_errors import likely_mislabelled

MISTAKES, MISLABELLED = "mistakes", "mislabelled"
_NUM_DRAWN = 16


def confident_mistakes(task: Classification, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Places of the wrong answers, int64, the one with the highest score first."""
    answers, scores = task.answers(outputs), task.scores(outputs)
    wrong = np.flatnonzero(answers != targets)
    return wrong[np.argsort(-scores[wrong, answers[wrong]], kind="stable")]


def write_mistakes(
    folder: Path, task: Classification, outputs: np.ndarray, targets: np.ndarray, ids: Sequence[str]
) -> int:
    """mistakes.csv and mislabelled.csv; how many look mislabelled. Nothing where a score is not finite."""
    scores = task.scores(outputs)
    if not np.isfinite(scores).all():
        return 0
    wrong, answers = confident_mistakes(task, outputs, targets), task.answers(outputs)
    suspects, suggested = likely_mislabelled(scores, targets)
    for name, column, places, others in (
        (MISTAKES, "answer", wrong, answers[wrong]),
        (MISLABELLED, "suggested", suspects, suggested),
    ):
        rows = [
            (
                ids[place],
                task.classes[targets[place]],
                task.classes[other],
                f"{scores[place, targets[place]]:.4f}",
                f"{scores[place, other]:.4f}",
            )
            for place, other in zip(places.tolist(), others.tolist(), strict=True)
        ]
        header = ("id", "label", column, "score_of_label", f"score_of_{column}")
        writer.write_text(folder / f"{name}.csv", rows_text(header, rows))
    return len(suspects)


def draw_mistakes(
    folder: Path,
    task: Classification,
    outputs: np.ndarray,
    targets: np.ndarray,
    samples: Sequence[Samples],
) -> None:
    """mistakes.png and mislabelled.png: the first 16 of each with label, answer and its score; none, no picture."""
    scores = task.scores(outputs)
    if not np.isfinite(scores).all():
        return
    from warmstart.analysis.image_plots import plot_images

    wrong, answers = confident_mistakes(task, outputs, targets), task.answers(outputs)
    for name, title, places, others in (
        (MISTAKES, "most confident mistakes: label, answer", wrong, answers[wrong]),
        (MISLABELLED, "likely mislabelled: label, suggestion", *likely_mislabelled(scores, targets)),
    ):
        shown = list(zip(places[:_NUM_DRAWN].tolist(), others[:_NUM_DRAWN].tolist(), strict=True))
        if shown:
            captions = [(task.classes[targets[p]], task.classes[k], float(scores[p, k])) for p, k in shown]
            images = [image_at(samples, place) for place, _ in shown]
            plot_images(images, captions, f"{title} ({len(shown)} of {len(places)})", folder / f"{name}.png")


def image_at(samples: Sequence[Samples], place: int) -> np.ndarray:
    """uint8 (H, W, 3) of an image counted through the splits in a row."""
    for part in samples:
        if place < len(part):
            pixels = part.pixels.read(place)
            return to_channels(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1], 3)
        place -= len(part)
    raise AssertionError("a place beyond the last image")
