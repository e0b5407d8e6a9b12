"""Rounds: edit, recover, measure. What a round has finished lies in its folder, and is never done again.

OUT/rounds/01-edited is the edited model as a run, OUT/rounds/01 the run that recovers it, and OUT/rounds/01.json what
was measured of it; with the last of them the round is over.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from warmstart.analysis.curves import draw_curves
from warmstart.analysis.paired import Scored, change_between
from warmstart.analysis.samples import task_and_targets
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.methods.blend import decided
from warmstart.methods.compress.cost import Cost, compare_latencies, count_parameters
from warmstart.methods.compress.editors import EDITORS
from warmstart.methods.compress.point import Point, header, row
from warmstart.methods.compress.prune_subject import with_sensitivity
from warmstart.methods.compress.recovery import recover
from warmstart.methods.compress.run_files import write_run
from warmstart.methods.compress.search import check_targets, next_amount
from warmstart.methods.compress.subject import Edited, Subject
from warmstart.models.build import BuiltModel
from warmstart.models.macs import count_macs
from warmstart.records import Recipe, finite
from warmstart.run import layout, writer
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run
from warmstart.tasks.label_metrics import resampled_map
from warmstart.tasks.multilabel import MultiLabel

ROUNDS = "rounds"


class CannotEdit(UserError):
    """The method cannot remove so much of this model: what ends a search that has rounds already."""


def measure_original(original: Subject) -> Point:
    return measure(original, original, original.score("val"), "original", 0.0)


def run_rounds(original: Subject, folder: Path) -> tuple[list[Point], str | None]:
    """The original and every round, each from the one before it; and why a search went no further, where its method
    could not.

    Raises:
        UserError: the original meets every target; whatever refuses the first round.
    """
    before = original.score("val")
    points = [measure(original, original, before, "original", 0.0)]
    if not (folder / ROUNDS / "01-edited").exists():  # latency is no longer the same when it goes on
        check_targets(original.settings, points[0])
    subject = original = with_sensitivity(original, folder)
    while (amount := next_amount(original.settings, points)) is not None:
        number = len(points)
        record = folder / ROUNDS / f"{number:02}.json"
        if record.exists():
            points.append(Point.from_json(json.loads(record.read_text(encoding="utf-8"))))
            subject = original.of(points[-1].reference)
            continue
        left = (1 - amount) / (1 - points[-1].removed)
        try:
            edited = _edit(subject, 1 - left, folder / ROUNDS / f"{number:02}-edited")
        except CannotEdit as error:
            if number == 1:
                raise
            log.warning("the search ends: %s", error.happened)
            return points, error.happened
        reference, notes = _recovered(original, edited, folder / ROUNDS / f"{number:02}")
        subject = original.of(reference)
        point = measure(subject, original, before, f"round {number}", amount)
        point = replace(point, notes=notes)
        writer.write_json(record, finite(point.to_json()))
        points.append(point)
        log.info("%s", ", ".join(map(" ".join, zip(header(point.metric), map(str, row(point)), strict=True))))
    return points, None


def _edit(subject: Subject, amount: float, folder: Path) -> Path:
    """The edited model as a run in `folder`. CannotEdit: the method cannot remove so much."""
    if not layout.is_run(folder):
        try:
            made = EDITORS[subject.settings.method](subject, amount)
            built = edited_model(subject, made)
        except UserError as error:
            raise CannotEdit(error.happened, error.expected, error.fix) from error
        for note in made.notes:
            log.info("%s", note)
        record = {
            "method": subject.settings.method,
            "told": "; ".join(made.notes),
            "notes": list(made.notes),
        }
        write_run(folder, subject.run, subject.restored.reference.step, built, record)
        writer.write_status(folder, "finished", step=0, best_step=0)
    return folder


def _recovered(original: Subject, edited: Path, folder: Path) -> tuple[str, tuple[str, ...]]:
    """The run with the result, and what should be known of it."""
    notes = tuple(Run(edited).resolved["compress"]["notes"])
    if not original.settings.epochs:
        return str(edited), notes
    run = recover(original, str(edited), folder)
    if original.has_pictures:
        draw_curves(Path(run))
    return run, notes


def edited_model(subject: Subject, made: Edited) -> BuiltModel:
    """The edited module with its recipe, after a forward pass has shown that it works.

    Raises:
        UserError: it does not run, gives other shapes, or numbers that are not finite.
    """
    images = subject.example(2)
    with torch.no_grad():
        wanted = subject.built.module(images).shape
        try:
            found = made.module.eval()(images)
        except Exception as error:  # whatever a forward pass raises that layers of other sizes break
            raise _broken(subject, f"it does not run: {error}") from error
    if found.shape != wanted or not torch.isfinite(found).all():
        raise _broken(
            subject, f"it gives {tuple(found.shape)} instead of {tuple(wanted)}, or no finite numbers"
        )
    recipe = subject.built.recipe or Recipe(())
    for edit in made.edits:
        recipe = recipe.then(edit)
    built = replace(subject.built, module=made.module, recipe=recipe, thresholds=None, lora=None, base=None)
    candidate = replace(subject.restored, built=built)
    return replace(built, decision=decided(candidate, subject.splits["val"], subject.settings.workers))


def _broken(subject: Subject, problem: str) -> UserError:
    method = subject.settings.method
    return UserError(
        f"after {method} {subject.built.name} does not work any more: {problem}",
        "a model that runs",
        "--keep PATTERN leaves the layers alone that depend on each other, or another --method",
    )


def measure(subject: Subject, original: Subject, before: Scored, name: str, removed: float) -> Point:
    """What a model answers on val and what it costs; `before` is what the original answered there."""
    found = before if subject is original else subject.score("val")
    _, targets = task_and_targets(subject.splits["val"], subject.restored)
    change = None if subject is original else change_between(before, found, targets)
    reference = subject.restored.reference
    assert reference.file is not None, "weights lie in a file"
    return Point(
        name=name,
        reference=reference_of({"run": subject.run.path, "step": reference.step}),
        removed=removed,
        metric=subject.metric,
        metrics=metrics_of(subject, found),
        change=change,
        cost=measure_cost(subject, original, Path(reference.file).stat().st_size),
    )


def metrics_of(subject: Subject, found: Scored) -> dict[str, float]:
    """Those of val, with the interval of the main one."""
    task, targets = task_and_targets(subject.splits["val"], subject.restored)
    if not isinstance(task, MultiLabel):
        return found.metrics
    low, high = np.quantile(resampled_map([found.scores], targets)[0], [0.025, 0.975]).tolist()
    return {**found.metrics, "map_low": low, "map_high": high}


def measure_cost(subject: Subject, original: Subject, num_bytes: int) -> Cost:
    module = subject.built.module.eval()
    own, others = compare_latencies(module, original.built.module.eval(), subject.example)
    return Cost(*count_parameters(module), count_macs(module, subject.example()), num_bytes, own, others)
