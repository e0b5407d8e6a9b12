"""The worst errors of a run's best checkpoint as pictures: of classes, of sets of labels, of masks.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from warmstart.analysis.overlays import colours, overlay
from warmstart.analysis.pages import thumbnail_uri
from warmstart.analysis.report.answers import Kept
from warmstart.analysis.report.blocks import Gallery, Picture
from warmstart.analysis.report.numbers import plain
from warmstart.analysis.report.pictures import Pictures, read_rgb
from warmstart.analysis.report.words import Words
from warmstart.data.decode import CorruptImage
from warmstart.data.samples import Pixels, Samples
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import layout
from warmstart.tasks.mask_metrics import counts_of, image_mious, ious

NUM_SHOWN, NUM_MASKS = 12, 6
_SIDE, _MASK_SIDE = 320, 400  # pixels of a picture
_TINY = 48

Predict = Callable[[np.ndarray], np.ndarray]  # an image uint8 (H, W, 3) -> its mask, int (H, W)


class _Row(NamedTuple):
    id: str
    label: str
    answer: str
    score: float


def class_galleries(kept: Kept, pictures: Pictures, words: Words) -> dict[str, Gallery | None]:
    """Of one class per image: the surest mistakes, those whose label is in doubt marked, and the other such images."""
    wrong, doubted = (_rows(kept, name) for name in (layout.MISTAKES_TABLE, layout.MISLABELLED_TABLE))
    suspects = {row.id for row in doubted}
    mistakes = _shown(wrong, pictures, lambda row: words("in_doubt") if row.id in suspects else "")
    seen = {picture.id for picture in mistakes}
    others = _shown([row for row in doubted if row.id not in seen], pictures, lambda row: "")
    found: dict[str, Gallery | None] = {}
    for name, shown, num in (("errors", mistakes, len(wrong)), ("mislabelled", others, len(doubted))):
        note = words(f"{name}_note", shown=len(shown), num=plain(num), split=words.known(kept.split))
        found[name] = Gallery(tuple(shown), note) if shown else None
    return found


def _rows(kept: Kept, name: str) -> list[_Row]:
    """Of mistakes.csv or mislabelled.csv, the first one first; UserError where it is damaged."""
    file = kept.folder / name
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as content:
            _, *lines = csv.reader(content)
        return [_Row(line[0], line[1], line[2], float(line[4])) for line in lines]
    except (ValueError, IndexError, csv.Error):
        raise UserError(f"{file} is damaged", "the table that was written") from None


def _shown(rows: list[_Row], pictures: Pictures, mark: Callable[[_Row], str]) -> list[Picture]:
    """The first of them whose images can be read."""
    places = pictures.places([row.id for row in rows[: 2 * NUM_SHOWN]])
    found: list[Picture] = []
    for row in rows:
        image = read_rgb(*_at(places[row.id])) if row.id in places and len(found) < NUM_SHOWN else None
        if image is not None:
            note = " · ".join(filter(None, (f"{row.score:.3f}", mark(row))))
            found.append(_picture(image, f"{row.label} → {row.answer}", note, row.id))
    return found


def _picture(image: np.ndarray, title: str, note: str, name: str) -> Picture:
    return Picture(((thumbnail_uri(image, _SIDE), ""),), title, note, name, max(image.shape[:2]) <= _TINY)


def sets_gallery(kept: Kept, pictures: Pictures, words: Words) -> Gallery | None:
    """Images whose set of labels is most wrong, with what was missed and added; None where all are right."""
    answers = read_predictions(kept.folder / layout.PREDICTIONS_TABLE)
    if answers.targets is None or not np.isfinite(answers.scores).all():
        return None
    cuts = np.array([row["threshold"] for row in kept.results["per_class"]])
    given, wanted = answers.scores >= cuts, answers.targets.astype(bool)
    # Of equally many wrong labels the ones that are farthest on the wrong side.
    wrong, depth = (
        (given != wanted).sum(axis=1),
        (np.abs(answers.scores - cuts) * (given != wanted)).sum(axis=1),
    )
    order = [int(n) for n in np.lexsort((-depth, -wrong)) if wrong[n]]
    places = pictures.places([answers.ids[n] for n in order[: 2 * NUM_SHOWN]])
    found: list[Picture] = []
    for number in order:
        name = answers.ids[number]
        image = read_rgb(*_at(places[name])) if name in places and len(found) < NUM_SHOWN else None
        if image is not None:
            missed = [answers.classes[k] for k in np.flatnonzero(wanted[number] & ~given[number])]
            added = [answers.classes[k] for k in np.flatnonzero(given[number] & ~wanted[number])]
            told = [words("missed", names=", ".join(missed))] if missed else []
            told += [words("added", names=", ".join(added))] if added else []
            label = ", ".join(c for c, has in zip(answers.classes, wanted[number], strict=True) if has)
            found.append(_picture(image, label or words("none"), "; ".join(told), name))
    if not found:
        return None
    note = words("sets_note", shown=len(found), num=plain(len(order)), split=words.known(kept.split))
    return Gallery(tuple(found), note)


def _at(place: tuple[Samples, int]) -> tuple[Pixels, int]:
    part, number = place
    return part.pixels, number


def masks_gallery(kept: Kept, pictures: Pictures, predict: Predict | None, words: Words) -> Gallery | None:
    """Images with the lowest mIoU: image, mask, and (where `predict` can) what the model answers."""
    answers = read_predictions(kept.folder / layout.PREDICTIONS_TABLE)
    values, by_class = image_mious(answers.scores), ious(counts_of(answers.scores))
    order = [int(n) for n in np.argsort(values, kind="stable") if np.isfinite(values[n])]
    places = pictures.places([answers.ids[n] for n in order[: 2 * NUM_MASKS]])
    found: list[Picture] = []
    for number in order[: 2 * NUM_MASKS]:
        name = answers.ids[number]
        views = _views(places[name], pictures.ignore, predict, words) if name in places else ()
        if views and len(found) < NUM_MASKS:
            worst = int(np.nanargmin(by_class[number]))
            note = words(
                "worst_class", name=answers.classes[worst], value=plain(float(by_class[number, worst]), 2)
            )
            found.append(Picture(views, f"mIoU {values[number]:.3f}", note, name))
    if not found:
        return None
    legend = zip(map(_hex, colours(len(answers.classes))), answers.classes, strict=True)
    note = words("masks_note", shown=len(found), num=plain(len(order)), split=words.known(kept.split))
    return Gallery(tuple(found), note, tuple(legend))


def _hex(colour: np.ndarray) -> str:
    """Half and half with grey, as it looks over an image."""
    red, green, blue = ((colour.astype(int) + 128) // 2).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _views(
    place: tuple[Samples, int], ignore: int | None, predict: Predict | None, words: Words
) -> tuple[tuple[str, str], ...]:
    """(data URI, word) of image, mask and answer; nothing where one of them cannot be read."""
    part, number = place
    image = read_rgb(part.pixels, number)
    if image is None or part.masks is None:
        return ()
    try:
        mask = _ids(part.masks.read(number))
    except CorruptImage:
        return ()
    views = [(image, "image"), (overlay(image, mask, ignore), "mask")]
    if predict is not None:
        views.append((overlay(image, predict(image)), "predicted"))
    return tuple((thumbnail_uri(view, _MASK_SIDE), words(word)) for view, word in views)


def _ids(mask: np.ndarray) -> np.ndarray:
    """(H, W) of a mask as it is read: uint8 (H, W, 1), or two bytes, the lower first."""
    return mask[..., 0] if mask.shape[2] == 1 else mask[..., 0] + 256 * mask[..., 1].astype(np.int64)
