"""Look inside a model: what it looked at, what its layers make of an image, how classes lie, what training changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.explain import charts as make
from warmstart.analysis.explain.cases import Case, class_number, labelled_cases, unlabelled_cases
from warmstart.analysis.explain.heat import GRAD_CAM, ROLLOUT, Look, choose_layer, look_at
from warmstart.analysis.explain.layers import Layer
from warmstart.analysis.explain.page import Card, Chart, page
from warmstart.analysis.explain.result import MAPS, METHODS, PAGE, RECORD, Explanation, Request
from warmstart.analysis.explain.subject import Subject, labelled_subject, unlabelled_subject
from warmstart.config.schema import DataConfig
from warmstart.console import progress
from warmstart.errors import UserError
from warmstart.inference.restore import Restored
from warmstart.records import finite
from warmstart.run import layout, writer


def explain(
    restored: Restored,
    request: Request,
    data: DataConfig | None = None,
    split: str | None = None,
    workers: int = 0,
) -> Explanation:
    """Look into the model and write a page, its pictures and its numbers into a folder.

    Nothing is written before all of it is known. A folder inside the run is replaced as a whole.

    Raises:
        UserError: an unknown method, class or layer, images and data at once, no image of the class, a method by name
            that does not apply to the model, or an output folder in use.
    """
    request.check()
    built = restored.built
    if not built.blocks:
        raise UserError(
            f"{restored.label} has no layers that can be looked into", "a run, or a file of weights"
        )
    only = None if request.only is None else class_number(request.only, built.classes)
    subject = _subject(restored, request, data, split, only, workers)
    if not np.isfinite(subject.outputs).all():
        raise UserError(f"{restored.label} gives outputs that are not finite", "weights that are")
    folder = _folder(restored, request, subject)
    if subject.targets is None:
        cases = unlabelled_cases(subject.task, subject.outputs, only)[: request.num]
    else:
        cases = labelled_cases(subject.task, subject.outputs, subject.targets, request.num, only)
    left_out: list[str] = []
    layer, looks = _looks(subject, cases, request, left_out)
    charts = _charts(subject, cases[0], request, left_out)
    result = Explanation(
        *(
            restored.label,
            subject.what,
            str(folder),
            layer,
            looks,
            charts,
            tuple(left_out),
            subject.unreadable,
        )
    )
    _write(result, folder)
    return result


def _subject(
    restored: Restored,
    request: Request,
    data: DataConfig | None,
    split: str | None,
    only: int | None,
    workers: int,
) -> Subject:
    if not request.images:
        return labelled_subject(restored, data, split, only, request.limit, workers)
    if data is not None or split is not None:
        flag = "--split" if data is None else "--data"
        raise UserError(f"{flag} beside images", "images, or a split of labelled data", "leave one out")
    return unlabelled_subject(restored, list(request.images), workers)


def _folder(restored: Restored, request: Request, subject: Subject) -> Path:
    """As told, and then new or empty; else inside the run."""
    if request.output is not None:
        folder = Path(request.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output {folder} is in use", "a new or empty folder", "choose another name")
        return folder
    run = restored.reference.run
    if run is None:
        raise UserError(
            "--output is missing", "a new folder for the page and its pictures", "--output FOLDER"
        )
    name = layout.of_task(subject.split.replace(",", "+"), run.task)
    return run.path / layout.EXPLANATIONS / f"{name}@{restored.reference.step}"


def _looks(
    subject: Subject, cases: Sequence[Case], request: Request, left_out: list[str]
) -> tuple[Layer | None, tuple[Look, ...]]:
    """The maps of all cases, where any were asked for and the model has a layer for them."""
    asked = [name for name in (GRAD_CAM, ROLLOUT) if name in (request.methods or METHODS)]
    if not asked:
        return None, ()
    must = bool(request.methods or request.layer or request.only)
    layer = _optional(
        must, ", ".join(asked), left_out, partial(choose_layer, subject, cases[0], request.layer)
    )
    if layer is None:
        return None, ()
    if ROLLOUT in asked and not request.methods:
        tried = _optional(False, ROLLOUT, left_out, partial(look_at, subject, cases[0], layer, [ROLLOUT]))
        asked = asked if tried is not None else [GRAD_CAM]
    with progress("explaining", len(cases)) as bar:
        looks = []
        for number, case in enumerate(cases, 1):
            looks.append(look_at(subject, case, layer, asked))
            bar.update(number)
    return layer, tuple(looks)


def _charts(subject: Subject, case: Case, request: Request, left_out: list[str]) -> tuple[Chart, ...]:
    makers: dict[str, Callable[[], Chart]] = {
        make.FILTERS: partial(make.filters_chart, subject, case),
        make.ACTIVATIONS: partial(make.activations_chart, subject, case),
        make.EMBEDDING: partial(make.embedding_chart, subject, request.projections),
        make.CKA: partial(make.similarity_chart, subject, request.start),
    }
    wanted = [name for name in makers if name in (request.methods or METHODS)]
    must = set(request.methods) | ({make.CKA} if request.start is not None else set())
    found = [_optional(name in must, name, left_out, makers[name]) for name in wanted]
    return tuple(chart for chart in found if chart is not None)


def _optional(must: bool, name: str, left_out: list[str], compute: Callable[[], Any]) -> Any:
    """What was asked for by name must work; what was not, and does not apply to this model, is left out and said."""
    if must:
        return compute()
    try:
        return compute()
    except UserError as error:
        left_out.append(error.happened if name in error.happened else f"{name}: {error.happened}")
        return None


def _write(result: Explanation, folder: Path) -> None:
    from warmstart.analysis.explain.pictures import draw_gallery, heated, shown

    cards = []
    for look in result.looks:
        picture = shown(look.image)
        views = [("image", picture), *((h.words, heated(picture, h.values, h.region)) for h in look.heats)]
        cards.append(Card(look.case.group, look.case.title, look.id, tuple(views)))
    words = "Bright is what speaks for the class; each map has its own scale."
    if any(heat.region is not None for look in result.looks for heat in look.heats):
        words += " White outline: the pixels that were given the class; where none were (missed), those of the mask."
    files: dict[str, bytes] = {}
    if result.layer is not None:
        words += f" Layer {result.layer.words}."
        sheet = [(f"{card.title}\n{card.id}", card.views) for card in cards]
        files[MAPS] = draw_gallery(sheet, f"What the model looked at ({len(cards)} images)")
    for chart in result.charts:
        files[f"{chart.name}.png"] = chart.light
        if chart.numbers:
            files[f"{chart.name}.csv"] = chart.numbers.encode()
    intro = "\n".join([result.what, *(f"Left out: {reason}" for reason in result.left_out)])
    files[PAGE] = page(f"Inside {result.model}", intro, cards, words, result.charts).encode()
    files[RECORD] = writer.json_bytes(finite(result.to_json()))
    if folder.exists() and not any(
        folder.iterdir()
    ):  # as given: it may be a mount, which cannot be moved away
        for name, content in files.items():
            writer.write_whole(folder / name, content)
    else:
        writer.write_folder(folder, files)
