"""Look inside a model: what it looked at, what its layers make of an image, how classes lie, what training changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from warmstart.analysis.explain import charts as make
from warmstart.analysis.explain.cases import Case, class_number, labelled_cases, unlabelled_cases
from warmstart.analysis.explain.heat import GRAD_CAM, ROLLOUT, Look, choose_layer, look_at
from warmstart.analysis.explain.layers import Layer
from warmstart.analysis.explain.page import Card, Chart, page
from warmstart.analysis.explain.projection import check_projections
from warmstart.analysis.explain.subject import Subject, labelled_subject, unlabelled_subject
from warmstart.config.schema import DataConfig
from warmstart.console import progress, table
from warmstart.errors import UserError, closest, listing
from warmstart.inference.restore import Restored
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.shown import Shown

METHODS = (GRAD_CAM, ROLLOUT, make.FILTERS, make.ACTIVATIONS, make.EMBEDDING, make.CKA)
PAGE, RECORD, MAPS = "explain.html", "explain.json", "maps.png"


@dataclass(frozen=True)
class Request:
    """What was asked for. Without `methods` all that apply; `images` instead of the data's; `only` names a class."""

    images: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    only: str | None = None
    layer: str | None = None
    num: int = 12
    limit: int = 1000
    start: str | None = None
    projections: tuple[str, ...] = ("pca", "tsne")
    output: str | None = None

    def check(self) -> None:
        """UserError for names that are not known, and for settings without effect."""
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"--method {name} is not known", listing(METHODS), closest(name, METHODS))
        check_projections(self.projections)
        wanted = set(self.methods or METHODS)
        dead = {
            "--layer": self.layer is not None and GRAD_CAM not in wanted,
            "--class-name": self.only is not None and GRAD_CAM not in wanted,
            "--start": self.start is not None and make.CKA not in wanted,
        }
        if problems := [
            UserError(f"{flag} has no effect with --method {','.join(self.methods)}")
            for flag, is_dead in dead.items()
            if is_dead
        ]:
            raise UserError.of_problems(problems, "the command line")


@dataclass(frozen=True)
class Explanation(Shown):
    """What was found; `left_out` says which methods do not apply, and why."""

    model: str
    what: str
    folder: str
    layer: Layer | None
    looks: tuple[Look, ...]
    charts: tuple[Chart, ...]
    left_out: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        of_layer = None if self.layer is None else {"path": self.layer.path, "places": str(self.layer.layout)}
        cases = [
            {
                **{"id": look.id, "group": look.case.group, "label": look.case.label or None},
                **{"answer": look.case.answer, "score": look.case.score},
                "maps": [heat.to_json() for heat in look.heats],
            }
            for look in self.looks
        ]
        return {
            **{
                "model": self.model,
                "data": self.what,
                "folder": self.folder,
                "layer": of_layer,
                "images": cases,
            },
            "blocks": [row for chart in self.charts for row in chart.rows],
            "left_out": list(self.left_out),
            "unreadable": [{"id": name, "reason": reason} for name, reason in self.unreadable],
        }

    def text(self) -> str:
        lines = [f"{self.model} on {self.what}"]
        if self.layer is not None:
            rows = [
                (
                    look.id,
                    look.case.group,
                    look.case.label or "-",
                    look.case.answer,
                    look.case.score,
                    *_peaks(look),
                )
                for look in self.looks
            ]
            widest = max(map(len, rows))
            rows = [(*row, *("",) * (widest - len(row))) for row in rows]
            head = ("image", "group", "label", "answer", "score", *("hottest place (x, y)",) * (widest - 5))
            lines += [f"maps of {self.layer.words}", "", table("", head, rows, left=4)]
        for chart in self.charts:
            if chart.rows:
                body = [tuple(row.values()) for row in chart.rows]
                lines += ["", table(chart.title, tuple(chart.rows[0]), body)]
        lines += ["", *(f"left out: {reason}" for reason in self.left_out)]
        lines += [f"unreadable: {name}: {reason}" for name, reason in self.unreadable]
        return "\n".join([*lines, f"look: {Path(self.folder) / PAGE}"])

    @property
    def pictures(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.png"))


def _peaks(look: Look) -> tuple[str, ...]:
    return tuple(
        f"{heat.words} at {heat.peak[0]:.2f}, {heat.peak[1]:.2f}"
        if heat.values.max() > 0
        else f"{heat.words}: nothing"
        for heat in look.heats
    )


def explain(
    restored: Restored,
    request: Request,
    data: DataConfig | None = None,
    split: str | None = None,
    workers: int = 0,
) -> Explanation:
    """Look into the model and write a page, its pictures and its numbers into a folder.

    Raises:
        UserError: an unknown method, class or layer, images and data at once, no image of the class, a method by name
            that does not apply to the model, or an output folder in use.
    """
    request.check()
    built = restored.built
    only = None if request.only is None else class_number(request.only, built.classes)
    subject = _subject(restored, request, data, split, only, workers)
    folder = _folder(restored, request, subject)
    if subject.targets is None:
        cases = unlabelled_cases(subject.task, subject.outputs, only)[: request.num]
    else:
        cases = labelled_cases(subject.task, subject.outputs, subject.targets, request.num, only)
    folder.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    layer, looks = _looks(subject, cases, request, left_out)
    charts = _charts(subject, cases[0], request, folder, left_out)
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
    layer = _optional(
        request, ", ".join(asked), left_out, partial(choose_layer, subject, cases[0], request.layer)
    )
    if layer is None:
        return None, ()
    if ROLLOUT in asked and not request.methods:
        tried = _optional(request, ROLLOUT, left_out, partial(look_at, subject, cases[0], layer, [ROLLOUT]))
        asked = asked if tried is not None else [GRAD_CAM]
    with progress("explaining", len(cases)) as bar:
        looks = []
        for number, case in enumerate(cases, 1):
            looks.append(look_at(subject, case, layer, asked))
            bar.update(number)
    return layer, tuple(looks)


def _charts(
    subject: Subject, case: Case, request: Request, folder: Path, left_out: list[str]
) -> tuple[Chart, ...]:
    makers: dict[str, Callable[[], Chart]] = {
        make.FILTERS: partial(make.filters_chart, subject, case),
        make.ACTIVATIONS: partial(make.activations_chart, subject, case),
        make.EMBEDDING: partial(make.embedding_chart, subject, request.projections, folder),
        make.CKA: partial(make.similarity_chart, subject, request.start, folder),
    }
    wanted = [name for name in makers if name in (request.methods or METHODS)]
    found = [_optional(request, name, left_out, makers[name]) for name in wanted]
    return tuple(chart for chart in found if chart is not None)


def _optional(request: Request, name: str, left_out: list[str], compute: Callable[[], Any]) -> Any:
    """What was asked for by name must work; what was not, and does not apply to this model, is left out and said."""
    if request.methods:
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
        cards.append(Card(look.case.group, _title(look.case), look.id, tuple(views)))
    words = "Bright is what speaks for the class; each map has its own scale."
    if result.layer is not None:
        words += f" Layer {result.layer.words}."
        sheet = [(f"{card.title}\n{card.id}", card.views) for card in cards]
        writer.write_whole(
            folder / MAPS, draw_gallery(sheet, f"What the model looked at ({len(cards)} images)")
        )
    for chart in result.charts:
        writer.write_whole(folder / f"{chart.name}.png", chart.light)
    intro = "\n".join([result.what, *(f"Left out: {reason}" for reason in result.left_out)])
    writer.write_text(folder / PAGE, page(f"Inside {result.model}", intro, cards, words, result.charts))
    writer.write_json(folder / RECORD, finite(result.to_json()))


def _title(case: Case) -> str:
    if case.group == "given":
        return f"{case.answer} {case.score:.2f}"
    if case.label == case.answer:
        return f"{case.label} {case.score:.2f}"
    return f"{case.label} → {case.answer} {case.score:.2f}"
