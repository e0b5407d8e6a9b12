"""compress: a request -> the original -> rounds -> the result, a run directory with a table and a picture.

What was asked for lies in OUT/compress.json from the first moment on; called again, a compression goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warmstart.analysis.compression_plot import Mark, plot_compression
from warmstart.analysis.evaluate import evaluate
from warmstart.analysis.paired import METRIC_WORDS, Change, Scored, change_between
from warmstart.config.compress_section import CompressConfig
from warmstart.config.places import absolute
from warmstart.console import log, table
from warmstart.errors import Interrupted, UserError
from warmstart.inference.reference import resolve_weights
from warmstart.inference.restore import restore
from warmstart.methods.compress.bare_file import run_of_file
from warmstart.methods.compress.cost import BATCHES
from warmstart.methods.compress.graphs import keep_graph, quantised_graphs, score_graph, trained_graph
from warmstart.methods.compress.point import Point, header, row
from warmstart.methods.compress.prune_subject import with_sensitivity
from warmstart.methods.compress.recovery import tell_cost
from warmstart.methods.compress.rounds import ROUNDS, measure_cost, measure_original, run_rounds
from warmstart.methods.compress.run_files import write_run
from warmstart.methods.compress.search import chosen
from warmstart.methods.compress.subject import Subject, open_subject
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.shown import Shown


@dataclass(frozen=True)
class Compressed(Shown):
    """The run that was written, all that was measured on the way to it, and what the result did to test."""

    run: str
    method: str
    points: tuple[Point, ...]
    chosen: int
    why: str
    test: Change | None  # from the original to the result; None: there is no test split
    extra: tuple[str, ...] = ()  # files beside the run's own

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "method": self.method,
            "chosen": self.points[self.chosen].name,
            "why": self.why,
            "num_threads": torch.get_num_threads(),  # latencies are of this machine, on so many
            "points": [point.to_json() for point in self.points],
            "test": None if self.test is None else {**vars(self.test), "change": self.test.change},
            "files": list(self.extra),
        }

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.run) / layout.COMPRESSION_PLOT]

    def text(self) -> str:
        point = self.points[self.chosen]
        rows = [(*row(each), "chosen" if each is point else "") for each in self.points]
        test = "no test split" if self.test is None else f"test, against the original: {self.test.change}"
        return "\n".join(
            [
                f"{self.method}: {self.points[0].reference} made smaller",
                table("", (*header(point.metric), ""), rows),
                *(f"{each.name}: {note}" for each in self.points for note in each.notes),
                f"{point.name}: {self.why}",
                test,
                *self.extra,
                "",
                f"run: {self.run}",
                f"look: warmstart show {self.run}",
            ]
        )


@dataclass(frozen=True)
class CompressionCost(Shown):
    """What a compression would take; nothing was written."""

    seconds: float
    point: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "original": self.point}

    def text(self) -> str:
        return "dry run: nothing was written"


def compress(
    reference: str, settings: CompressConfig, device: torch.device, dry_run: bool = False
) -> Compressed | CompressionCost:
    """Make the model that `reference` names smaller, and write the result as a run.

    Raises:
        UserError: a model that is not compressed, settings that do not fit it, a folder in use, an interruption.
    """
    folder, run = _folder(reference, settings), resolve_weights(reference).run
    if run is not None and run.tasks:
        raise UserError(
            f"{reference} is a run of several tasks, which are not compressed",
            "a run of one task",
            f"`warmstart finetune --weights {reference} --data DATA` makes one of it",
        )
    if run is None:
        reference = run_of_file(reference, settings, folder / ROUNDS / "00", dry_run)
    elif settings.data is not None:
        raise UserError(
            f"--data {settings.data}: {reference} is a run, and has its own",
            "--data with a file of weights",
            "leave it out",
        )
    original = open_subject(reference, settings, device)
    if dry_run:
        return _dry_run(original, folder)
    _begin(folder, reference, settings)
    tell_cost(original, settings, folder)
    try:
        points, number, why = _candidates(original, folder.absolute())
    except Interrupted as error:
        raise Interrupted(error.happened, error.expected, f"warmstart resume {folder}") from None
    finally:
        _leave_no_trace(folder)
    return _finish(original, folder, points, number, why)


def _candidates(original: Subject, folder: Path) -> tuple[list[Point], int, str]:
    """All that was measured, the number of the result among it, and why it is that."""
    if original.settings.method == "int8":
        return quantised_graphs(original, [measure_original(original)], folder / ROUNDS / "int8")
    points = run_rounds(with_sensitivity(original, folder), folder)
    return points, *chosen(original.settings, points)


def _dry_run(original: Subject, folder: Path) -> CompressionCost:
    seconds = tell_cost(original, original.settings, folder / ROUNDS)
    file = original.restored.reference.file
    assert file is not None, "weights lie in a file"
    cost = measure_cost(original, original, Path(file).stat().st_size)
    return CompressionCost(seconds, cost.to_json())


def _folder(reference: str, settings: CompressConfig) -> Path:
    """As told, else MODEL-METHOD beside the model, or the next free number."""
    if settings.output_dir is not None:
        return Path(settings.output_dir)
    found = resolve_weights(reference)
    model = Path(reference) if found.run is None else found.run.path
    first = model.with_name(f"{model.stem if model.is_file() else model.name}-{settings.method}")
    others = (first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))
    return next(path for path in (first, *others) if not path.exists())


def _asked(reference: str, settings: CompressConfig) -> dict[str, Any]:
    """What must be the same to go on: where it computes is not."""
    values = settings.model_dump(mode="json", exclude={"output_dir", "device", "workers"})
    return {"model": absolute(reference), "settings": values}


def _begin(folder: Path, reference: str, settings: CompressConfig) -> None:
    """Write down what is asked for, or find the same there. UserError: the folder is in use, or is done."""
    asked, file = _asked(reference, settings), folder / layout.COMPRESS
    if not file.exists():
        others = [] if not folder.exists() else [path for path in folder.iterdir() if path.name != ROUNDS]
        if others:
            raise UserError(
                f"--output-dir {folder} is in use", "a new or empty folder", "choose another name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        writer.write_json(file, asked)
        return
    known = json.loads(file.read_text(encoding="utf-8"))
    if (folder / layout.COMPRESSION).exists():
        raise UserError(
            f"{folder} is finished: nothing is left to do", "a new folder", f"look: warmstart show {folder}"
        )
    if known != asked:
        before, now = ({**each["settings"], "model": each["model"]} for each in (known, asked))
        names = [name for name in now if before.get(name) != now[name]]
        told = ", ".join(f"--{name.replace('_', '-')} was {before.get(name)}" for name in names)
        raise UserError(
            f"{folder} holds a compression with other settings: {told}",
            "the same settings to go on with it, or a new folder",
            f"`warmstart resume {folder}` goes on with it",
        )
    log.info("going on with the compression in %s", folder)


def _leave_no_trace(folder: Path) -> None:
    """Of a compression that was refused before it had made anything."""
    inside, rounds = [path.name for path in folder.iterdir()], folder / ROUNDS
    if inside == [layout.COMPRESS] or (
        set(inside) == {layout.COMPRESS, ROUNDS} and not any(rounds.iterdir())
    ):
        shutil.rmtree(folder)


def unfinished(folder: Path) -> tuple[str, CompressConfig] | None:
    """The model and the settings of a compression that was interrupted; None: there is none in this folder."""
    file = folder / layout.COMPRESS
    if not file.exists() or (folder / layout.COMPRESSION).exists():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    return known["model"], CompressConfig(**known["settings"], output_dir=str(folder))


def _finish(original: Subject, folder: Path, points: list[Point], number: int, why: str) -> Compressed:
    """The result as a run, measured on test beside the original; of int8 after training, the original and a graph."""
    settings, run = original.settings, original.run
    is_graph = settings.method == "int8"
    point = points[0 if is_graph else number]
    subject = original.of(point.reference)
    step = original.restored.reference.step
    made, recipe = points[number], subject.built.recipe
    size, macs = (
        f"{getattr(points[0].cost, name) / 1e6:.2f} to {getattr(made.cost, name) / 1e6:.2f}"
        for name in ("num_bytes", "macs")
    )
    record = {
        "method": settings.method,
        "told": f"{size} MB, {macs} million MACs ({made.name}: {why})",
        "from": point.reference,
        "edits": [] if recipe is None else sorted(recipe.kinds),
    }
    write_run(folder, run, step, subject.built, record)
    row = {"step": 0, "epoch": 0.0, "split": "val"}
    writer.append_row(folder / layout.EVALS, row | point.metrics)
    select_by = run.resolved["select_by"]
    writer.write_status(
        folder, "finished", step=0, best_step=0, best_value=point.metrics.get(select_by), select_by=select_by
    )
    written = restore(str(folder), original.device)
    evaluate(written, split="val", workers=settings.workers, choose_thresholds=True)
    extra: tuple[str, ...] = ()
    if settings.method in ("int8", "qat"):
        points = (
            points
            if is_graph
            else trained_graph(original, points, original.of(str(folder)), folder / ROUNDS / "int8")
        )
        extra = keep_graph(points[number if is_graph else -1], folder)
    graph = points[number].reference if is_graph else None
    test = _on_test(original, str(folder), graph) if "test" in original.splits else None
    result = Compressed(str(folder), settings.method, tuple(points), number, why, test, extra)
    write_table(result, folder)
    return result


def _on_test(original: Subject, run: str, graph: str | None) -> Change:
    """The paired change from the original to the result, which is evaluated as a run is, or to a graph of it."""
    found = evaluate(restore(run, original.device), split="test", workers=original.settings.workers).draw()
    after = Scored(found.task, found.task.scores(found.outputs), found.metrics)
    if graph is not None:
        after = score_graph(original, graph, "test")
    return change_between(original.score("test"), after, found.targets)


def write_table(result: Compressed, folder: Path) -> None:
    """compression.png, then compression.json, with which a compression is finished."""
    first, marks = result.points[0].cost.latency, []
    for point in result.points:
        cost = point.cost
        # A machine is not equally busy in all rounds: what the original took beside each of them is the measure.
        shares = {batch: cost.latency[batch].median / cost.original[batch].median for batch in BATCHES}
        times = {f"ms at batch {batch}": shares[batch] * first[batch].median * 1e3 for batch in BATCHES}
        costs = {"million MACs": cost.macs / 1e6, **times}
        marks.append(Mark(point.name, costs, point.value, *point.interval))
    metric = METRIC_WORDS[result.points[0].metric]
    plot_compression(marks, result.chosen, metric, folder / layout.COMPRESSION_PLOT)
    writer.write_json(folder / layout.COMPRESSION, finite(result.to_json()))
