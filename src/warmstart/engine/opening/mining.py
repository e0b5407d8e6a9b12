"""Hard examples: training images that an earlier run got confidently wrong come more often.

(Document 001's hard negatives are those of its negative class; here they are of any.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from warmstart.config.data_section import DataConfig
from warmstart.config.places import absolute
from warmstart.console import log
from warmstart.data.dataset import Dataset
from warmstart.data.samples import Samples
from warmstart.errors import UserError, listing
from warmstart.inference.predictions import Predictions, read_predictions
from warmstart.run import layout, reader

_MOST_RELABELLED = (
    0.1  # of the images that a file knows; more have other labels only where they are other images
)


def find_mined(
    settings: DataConfig, dataset: Dataset, resolved: dict[str, Any] | None
) -> dict[str, Any] | None:
    """What `--mine` found: the file of predictions, how many training images it knows, and the ids of the hard ones.

    Hard is an image to whose wrong classes the predictions give at least `mine_prob` in one of them; right and wrong
    go by the labels that the image has now. `resolved` is what the run recorded when it was started.

    Raises:
        UserError: no predictions of training images, or those of other classes or images.
    """
    if settings.mine is None:
        return None
    if resolved is not None:
        return resolved.get("mined")
    samples = dataset.splits["train"]
    if samples.targets.ndim != 1 or dataset.ignore is not None:
        raise UserError("--mine needs one class per image", "images with one label each", "leave --mine out")
    is_run = (Path(settings.mine) / layout.RESOLVED).is_file()
    file = _file_of_run(settings, dataset.facts.fingerprint) if is_run else Path(settings.mine)
    if file.is_dir():
        raise UserError(f"--mine {file} is no run", "a run directory, or a file predictions.parquet")
    predictions = read_predictions(file)
    rows, known = _match(predictions, samples, dataset.classes, file)
    if not is_run:
        _check_labels(predictions, rows, [dataset.classes[code] for code in samples.targets[known]], file)
    scores = predictions.scores[rows].astype(np.float64)
    scores = scores[:, [predictions.classes.index(name) for name in dataset.classes]]
    scores[np.arange(len(known)), samples.targets[known]] = -np.inf
    hard = known[scores.max(axis=1) >= settings.mine_prob]
    return {
        "path": str(file),
        "num_known": len(known),
        "weight": settings.mine_weight,
        "ids": [samples.ids[index] for index in hard.tolist()],
    }


def announce_mined(mined: dict[str, Any] | None, prob: float) -> None:
    if mined is None:
        return
    num = len(mined["ids"])
    log.info(
        "mined: %d of the %d training images that %s knows were wrong with a score of %g or more: weight %g%s",
        num,
        mined["num_known"],
        mined["path"],
        prob,
        mined["weight"],
        "; a wrong label looks the same, so look at them: " + listing(mined["ids"], 3) if num else "",
    )


def sample_weights(mined: dict[str, Any] | None, samples: Samples) -> np.ndarray | None:
    """float64 (N,): how often each training image comes, relative to the others; None: all alike."""
    if mined is None or not mined["ids"]:
        return None
    hard = set(mined["ids"])
    return np.array([mined["weight"] if name in hard else 1.0 for name in samples.ids])


def _file_of_run(settings: DataConfig, fingerprint: str) -> Path:
    """A run's predictions of its training images: at the best step, else at the last one.

    Raises:
        UserError: there are none, or the run is of other data: files of two data sets may share their names.
    """
    path, place = str(settings.mine), absolute(settings.path or "")
    run = reader.open_run(path)
    recorded = run.resolved["data"]
    if recorded["fingerprint"] != fingerprint:
        if recorded["path"] != place:
            raise UserError(
                f"--mine {path} was trained on {recorded['path']}, and --data {place} holds other images",
                "a run on the same data",
                f"give the predictions as a file: `warmstart evaluate {path} --data {place} --split train` writes it",
            )
        log.warning("mined: the data in %s have changed since %s was trained on them", place, path)
    found: dict[int, Path] = {}
    for file in sorted((run.path / layout.EVALUATIONS).glob("*@*/predictions.parquet")):
        splits, _, step = file.parent.name.partition("@")
        if "train" in splits.split("+") and step.isdecimal():  # those of other data have more after the step
            found[int(step)] = file
    if not found:
        raise UserError(
            f"--mine {path}: that run has no predictions of its training images",
            f"{layout.EVALUATIONS}/train@STEP/predictions.parquet",
            f"warmstart evaluate {path} --split train",
        )
    best = run.pointer(layout.BEST)
    return found[best] if best is not None and best in found else found[max(found)]


def _match(
    predictions: Predictions, samples: Samples, classes: tuple[str, ...], file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, places): of the images that are predicted and among the training images."""
    if sorted(predictions.classes) != sorted(classes):
        raise UserError(
            f"--mine: {file} is of the classes {listing(predictions.classes)}, and these data have {listing(classes)}",
            "predictions of the same classes",
            "evaluate a run of these classes on its training images",
        )
    place_of = {name: place for place, name in enumerate(samples.ids)}
    pairs = [(row, place_of[name]) for row, name in enumerate(predictions.ids) if name in place_of]
    if not pairs:
        raise UserError(
            f"--mine: {file} knows none of the {len(samples)} training images by their ids "
            f"(there {predictions.ids[0] if predictions.ids else 'none'}, here {samples.ids[0]})",
            "predictions of these training images",
            "warmstart evaluate RUN --split train, with a run on these data",
        )
    rows, places = np.array(pairs).T
    return rows, places


def _check_labels(predictions: Predictions, rows: np.ndarray, labels: list[str], file: Path) -> None:
    """UserError where the labels that the file holds of these rows are not those that the images have now."""
    if predictions.targets is None or predictions.targets.ndim != 1:
        return
    pairs = [
        (predictions.classes[code], now)
        for code, now in zip(predictions.targets[rows].tolist(), labels, strict=True)
        if code >= 0
    ]
    num_other = sum(before != now for before, now in pairs)
    if num_other > _MOST_RELABELLED * len(pairs):
        raise UserError(
            f"--mine: {file} has other labels for {num_other} of the {len(pairs)} training images that it knows by "
            "their ids",
            "predictions of these images, of which some may have been relabelled",
            "warmstart evaluate RUN --split train, with a run on these data",
        )
