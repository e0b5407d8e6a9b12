"""The charts of an explanation, each with its words: filters, activation maps, embedding map, similarity of blocks.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.evaluation_files import rows_text
from warmstart.analysis.explain.cases import Case
from warmstart.analysis.explain.heat import activation_maps, first_filters
from warmstart.analysis.explain.origin import compared_with_start
from warmstart.analysis.explain.page import Chart
from warmstart.analysis.explain.projection import project
from warmstart.analysis.explain.subject import Subject
from warmstart.errors import UserError
from warmstart.tasks.mask_metrics import counts_of
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

FILTERS, ACTIVATIONS, EMBEDDING, CKA = "filters", "activations", "embedding", "cka"
_FILTERS_PER_ROW, _MAPS_PER_ROW = 16, 8


def filters_chart(subject: Subject, case: Case) -> Chart:
    from warmstart.analysis.explain.pictures import draw_tiles

    path, tiles = first_filters(subject.restored.built, subject.inputs()(subject.batch(case.place).images))
    zero = (
        "grey is zero"
        if tiles.ndim == 4
        else "the mean over its channels; white is zero, red above, blue below"
    )
    words = (
        f"The {len(tiles)} strongest filters of the first convolution ({path}), each in its own scale; {zero}. "
        "Trained ones show edges, colours and smooth patterns; noise means that they were hardly trained."
    )
    draw = partial(draw_tiles, [(f"{path}: {tiles.shape[1]} x {tiles.shape[2]} weights", tiles)])
    return _both(FILTERS, "First filters", words, lambda dark: draw(dark, _FILTERS_PER_ROW, "RdBu_r"))


def activations_chart(subject: Subject, case: Case) -> Chart:
    from warmstart.analysis.explain.pictures import draw_tiles

    rows = activation_maps(subject.restored.built, subject.inputs()(subject.batch(case.place).images))
    name = subject.ids[case.place]
    words = f"What the blocks make of {name}: from each the channels that differ most over the image, bright is high."
    draw = partial(draw_tiles, rows)
    return _both(ACTIVATIONS, "Activation maps", words, lambda dark: draw(dark, _MAPS_PER_ROW))


def embedding_chart(subject: Subject, projections: tuple[str, ...]) -> Chart:
    """And its numbers: a row per image.

    Raises:
        UserError: images without labels, or too few.
    """
    from warmstart.analysis.explain.pictures import draw_embedding

    if subject.targets is None:
        raise UserError("embedding: the images have no labels to colour them by", "a labelled split, --split")
    numbers, classes, quality = _colours(subject)
    maps = [project(subject.embeddings, name) for name in projections]
    columns = [f"{name}_{axis}" for name in projections for axis in "xy"]
    places = np.concatenate([points for points, _ in maps], axis=1)
    rows = [
        (name, classes[number], f"{value:g}", *(f"{x:.6g}" for x in row))
        for name, number, value, row in zip(
            subject.ids, numbers.tolist(), quality.tolist(), places.tolist(), strict=True
        )
    ]
    words = (
        f"What goes into the classifier ({subject.embeddings.shape[1]} numbers) for {len(subject)} images of "
        f"{subject.what}. Groups that overlap are classes that it confuses; a wrong point in the midst of another "
        "group may be mislabelled. In t-SNE and UMAP neighbours count; distances between groups say little."
    )
    if isinstance(subject.task, Segmentation):
        words += (
            " A point is an image (the mean over its pixels), coloured by the class with most of its pixels."
        )
    draw = partial(draw_embedding, maps, numbers, classes, quality)
    numbers_text = rows_text(("id", "class", "right", *columns), rows)
    return replace(_both(EMBEDDING, "Embedding map", words, draw), numbers=numbers_text)


def _colours(subject: Subject) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.float64]]:
    """(class of each image, names, how right the model is about it, 0 to 1)."""
    task, outputs, targets = subject.task, subject.outputs, subject.targets
    assert targets is not None
    if isinstance(task, Segmentation):
        counts = counts_of(outputs)
        share = counts.hits.sum(axis=1) / np.maximum(counts.num_valid, 1)
        return counts.wanted.argmax(axis=1), task.classes, share
    if isinstance(task, MultiLabel):
        num = targets.sum(axis=1)
        numbers = np.where(num == 1, targets.argmax(axis=1), len(task.classes) + (num > 1))
        exact = task.num_wrong(task.scores(outputs), targets) == 0
        return numbers, (*task.classes, "no label", "several labels"), exact.astype(np.float64)
    return targets, task.classes, (task.answers(outputs) == targets).astype(np.float64)


def similarity_chart(subject: Subject, start: str | None) -> Chart:
    """And its numbers: a row per block.

    Raises:
        UserError: no start is known, or one of another architecture.
    """
    from warmstart.analysis.explain.pictures import draw_similarity

    label, found = compared_with_start(subject, start)
    rows = found.rows()
    words = (
        f"How alike the representations of {found.num_samples} images are before ({label}) and after: 1 is equal up to "
        "a rotation and a scale, so low is where fine-tuning changed most. CKA of few images is too high; the debiased "
        "value is about 0 for what has nothing in common. Both follow the directions of largest variance, which a few "
        "images far from all others can be. Weights moved: |w - w of the start| / |w of the start|."
    )
    chart = _both(CKA, "What fine-tuning changed", words, partial(draw_similarity, found))
    numbers = rows_text(tuple(rows[0]), [tuple(row.values()) for row in rows])
    return replace(chart, rows=tuple(rows), numbers=numbers)


def _both(name: str, title: str, words: str, draw: Callable[[bool], bytes]) -> Chart:
    return Chart(name, title, words, draw(False), draw(True))
