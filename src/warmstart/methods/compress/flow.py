"""compress: a request -> the original -> rounds -> the result, a run directory with a table and a picture.

What was asked for lies in OUT/compress.json from the first moment on; called again, a compression goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warmstart.analysis.compression_plot import Mark, plot_compression
from warmstart.analysis.evaluate import evaluate
from warmstart.analysis.paired import METRIC_WORDS, Change, Scored, change_between
from warmstart.config.compress_section import CompressConfig
from warmstart.console import table
from warmstart.errors import Interrupted, UserError
from warmstart.inference.reference import resolve_weights
from warmstart.inference.restore import restore
from warmstart.methods.compress.bare_file import run_of_file
from warmstart.methods.compress.beginning import begin, check_packages, find_begun, folder_of, leave_no_trace
from warmstart.methods.compress.cost import BATCHES
from warmstart.methods.compress.graphs import keep_graph, quantised_graphs, score_graph, trained_graph
from warmstart.methods.compress.layers import chosen_layers
from warmstart.methods.compress.point import Point, header, row
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
    check_packages(settings.method)
    folder, run = folder_of(reference, settings), resolve_weights(reference).run
    if run is not None and run.tasks:
        raise UserError(
            f"{reference} is a run of several tasks, which are not compressed",
            "a run of one task",
            f"`warmstart finetune --weights {reference} --data DATA` makes one of it",
        )
    if run is not None and run.status["state"] == "running":
        raise UserError(
            f"{reference} is still being trained: its best step may be another one at any time",
            "a run that has ended",
            "wait for it, or stop it with Ctrl+C; `warmstart resume` goes on with it later",
        )
    if run is not None and settings.data is not None:
        raise UserError(
            f"--data {settings.data}: {reference} is a run, and has its own",
            "--data with a file of weights",
            "leave it out",
        )
    if dry_run:
        find_begun(folder, reference, settings)
        return _dry_run(_open(reference, settings, device, folder, dry_run), folder)
    is_new = begin(folder, reference, settings)
    try:
        original = _open(reference, settings, device, folder, dry_run)
        tell_cost(original, settings, folder)
        points, number, why = _candidates(original, folder.absolute())
    except Interrupted as error:
        raise Interrupted(error.happened, error.expected, f"warmstart resume {folder}") from None
    except UserError:
        if is_new:
            leave_no_trace(folder)  # the corrected command would find the folder in use
        raise
    return _finish(original, folder, points, number, why)


def _open(
    reference: str, settings: CompressConfig, device: torch.device, folder: Path, dry_run: bool
) -> Subject:
    """What is compressed; of a file, a run is made first. UserError: layers are named that cannot be, or
    there are no images to calibrate on."""
    if resolve_weights(reference).run is None:
        reference = run_of_file(reference, settings, folder / ROUNDS / "00", dry_run)
    subject = open_subject(reference, settings, device)
    chosen_layers(subject, lambda _: None)  # before anything is measured: names that no method takes
    if settings.calibrates:
        subject.calibration()
    return subject


def _candidates(original: Subject, folder: Path) -> tuple[list[Point], int, str]:
    """All that was measured, the number of the result among it, and why it is that."""
    if original.settings.method == "int8":
        return quantised_graphs(original, [measure_original(original)], folder / ROUNDS / "int8")
    points, stopped = run_rounds(original, folder)
    return points, *chosen(original.settings, points, stopped)


def _dry_run(original: Subject, folder: Path) -> CompressionCost:
    seconds = tell_cost(original, original.settings, folder / ROUNDS)
    file = original.restored.reference.file
    assert file is not None, "weights lie in a file"
    cost = measure_cost(original, original, Path(file).stat().st_size)
    return CompressionCost(seconds, cost.to_json())


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
    (folder / layout.EVALS).unlink(missing_ok=True)  # of a result that was not written to its end
    writer.append_row(folder / layout.EVALS, row | point.metrics)
    select_by = run.resolved["select_by"]
    writer.write_status(
        folder, "finished", step=0, best_step=0, best_value=point.metrics.get(select_by), select_by=select_by
    )
    written = restore(str(folder), original.device)
    evaluate(written, split="val", workers=settings.workers, choose_thresholds=True)
    extra: tuple[str, ...] = ()
    if settings.method in ("int8", "qat"):
        num = len(points)
        if not is_graph:
            points = trained_graph(original, points, original.of(str(folder)), folder / ROUNDS / "int8")
        if is_graph or len(points) > num:
            extra = keep_graph(points[number if is_graph else -1], folder)
    graph = points[number].reference if is_graph else None
    test = _on_test(original, str(folder), graph) if "test" in original.splits else None
    result = Compressed(str(folder), settings.method, tuple(points), number, why, test, extra)
    write_table(result, folder)
    return result


def _on_test(original: Subject, run: str, graph: str | None) -> Change:
    """The paired change from the original to the result, which is evaluated as a run is, or to a graph of it."""
    found = evaluate(restore(run, original.device), split="test", workers=original.settings.workers)
    if original.has_pictures:
        found.draw()
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
