"""The folder of a comparison: what it found as JSON and text, tables, pictures, the samples that changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.analysis.compare.models import ModelComparison
from warmstart.analysis.compare.recipes import RecipeComparison
from warmstart.analysis.compare.runs import RunTable
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.records import finite
from warmstart.run import layout, writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmstart.config.schema import DataConfig
    from warmstart.data.samples import Samples

TEXT, SAMPLES, CURVES, METRICS, CLASSES = (
    "comparison.txt",
    "samples.csv",
    "curves.png",
    "metrics.png",
    "classes.png",
)
_NUM_DRAWN = 16

AnyComparison = ModelComparison | RecipeComparison | RunTable


def check_folder(output_dir: str | None) -> None:
    """UserError where the folder is in use."""
    if output_dir is None:
        return
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output-dir {folder} is in use", "a new or empty folder", "choose another name")


def write(found: AnyComparison, output_dir: str | None, data: DataConfig | None = None) -> AnyComparison:
    """The same, after everything was written to its folder, if there is to be one."""
    if output_dir is None:
        return found
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(found, RunTable):
        from warmstart.analysis.compare.pictures import plot_curves

        found = replace(found, folder=str(folder))
        plot_curves(found.curves, found.metric, folder / CURVES)
    else:
        from warmstart.analysis.compare.pictures import plot_differences

        plot_differences(found.overall, found.verdict[:80], folder / METRICS)
        plot_differences(found.by_class, "by class", folder / CLASSES)
        if isinstance(found, ModelComparison):
            found = replace(found, folder=str(folder))
            _write_samples(found, folder)
            _draw_samples(found, folder, data)
    writer.write_json(folder / layout.COMPARISON, finite(found.to_json()))
    writer.write_text(folder / TEXT, found.text() + "\n")
    return found


def _write_samples(found: ModelComparison, folder: Path) -> None:
    """samples.csv: every sample that became better or worse."""
    from warmstart.analysis.evaluation_files import rows_text

    rows = [
        (found.answers[0].ids[place], word, found.answer_of(0, place), found.answer_of(1, place))
        for word, broken in (("broken", True), ("fixed", False))
        for place in found.changed(broken).tolist()
    ]
    writer.write_text(folder / SAMPLES, rows_text(("id", "change", "A", "B"), rows))


def _draw_samples(found: ModelComparison, folder: Path, data: DataConfig | None) -> None:
    """fixed.png and broken.png: the label and the wrong answer with its score; of sets and masks, what A and B got."""
    if not found.test.fixed + found.test.broken:
        return
    try:
        samples = _samples(found, data)
    except UserError as error:  # the data lie elsewhere now: the comparison stands without their pictures
        log.warning("no pictures of the samples: %s", error.happened)
        return
    from warmstart.analysis.image_plots import plot_images
    from warmstart.analysis.mistakes import image_at

    known = {name: number for number, name in enumerate(n for part in samples for n in part.ids)}
    ids = found.answers[0].ids
    for word, broken in (("broken", True), ("fixed", False)):
        places = found.changed(broken)
        shown = [place for place in places.tolist() if ids[place] in known][:_NUM_DRAWN]
        captions = [_caption(found, place, broken) for place in shown]
        if shown:
            images = [image_at(samples, known[ids[place]]) for place in shown]
            what = "label, wrong answer" if found.kind == "classification" else "A, B"
            title = f"{word} by B: {what} ({len(shown)} of {len(places)})"
            plot_images(images, captions, title, folder / f"{word}.png")


def _caption(found: ModelComparison, place: int, broken: bool) -> tuple[str, str, float | None]:
    targets, wrong = found.answers[0].targets, found.answers[1 if broken else 0]
    if found.kind != "classification" or targets is None:
        return found.answer_of(0, place), found.answer_of(1, place), None
    answer = found.answer_of(1 if broken else 0, place)
    return wrong.classes[int(targets[place])], answer, float(wrong.scores[place, wrong.classes.index(answer)])


def _samples(found: ModelComparison, data: DataConfig | None) -> Sequence[Samples]:
    """The images of the split that was compared, as the run has divided its data, or as they lie in `data`."""
    from warmstart.analysis.samples import open_evaluation_set

    sides = [answers.side for answers in found.answers]
    run = next((side.run for side in sides if side.run is not None), None)
    return open_evaluation_set(run, data, found.split, None).samples
