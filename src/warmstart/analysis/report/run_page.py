"""The page of a run: verdict, curves, what went wrong, classes, errors, plan, data, machine, commands.

A section whose facts are missing is left out, and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from warmstart.analysis.compare.sides import Side
from warmstart.analysis.diagnose.findings import Diagnosis
from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.rules import diagnose_history
from warmstart.analysis.report import answers, errors, facts
from warmstart.analysis.report.blocks import Block, Findings, Found, Gallery, Note, Page, Section
from warmstart.analysis.report.curves import charts_of
from warmstart.analysis.report.glance import tiles_of
from warmstart.analysis.report.made import describe, is_made
from warmstart.analysis.report.outcome import verdict_of
from warmstart.analysis.report.pictures import Pictures, open_pictures
from warmstart.analysis.report.words import Words
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.run.reader import Run

_SEGMENTATION, _SETS = "segmentation", "multi-label"


@dataclass
class _Parts:
    """Sections as they are found, and what there is none of: (what, why)."""

    words: Words
    sections: list[Section] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, blocks: list[Block | None], task: str | None = None) -> None:
        """A section of what there is of these blocks; nothing without any."""
        known = tuple(block for block in blocks if block is not None)
        if known:
            title = self.words(name) if task is None else f"{task}: {self.words(name)}"
            anchor = name if task is None else f"{name}-{len(self.sections)}"
            self.sections.append(Section(anchor, title, known))

    def lacks(self, name: str, why: str) -> None:
        self.left_out.append(f"{self.words(name)} ({why})")


def run_page(run: Run, words: Words, images: bool) -> Page:
    """`images`: with pictures of the run's data. UserError for a run without a row, or with damaged files."""
    parts = _Parts(words)
    made = describe(run, words) if is_made(run) else None
    diagnosis = _diagnosis(run) if made is None else None
    verdict = verdict_of(run, diagnosis, words) if made is None else made[0]
    parts.sections += [] if made is None else made[1]
    parts.add("curves", list(charts_of(run, words)) if made is None else [])
    if diagnosis is not None:
        parts.add("diagnosis", [_findings(diagnosis, words), *map(Note, diagnosis.notes)])
    for name in [task["name"] for task in run.tasks] or [None]:
        seen = run if name is None else run.of_task(name)
        _answers(parts, seen, images)
    parts.add("plan", [facts.plan_table(run, words)])
    for name in [task["name"] for task in run.tasks] or [None]:
        seen = run if name is None else run.of_task(name)
        parts.add("dataset", [facts.data_facts(seen, words), facts.class_counts(seen, words)], name)
    parts.add("environment", [facts.environment(run, words)])
    parts.add("reproduce", [facts.commands(run, words)])
    about = f"{run.resolved['model']['name']} · {run.resolved['data']['path']}"
    tiles = tiles_of(run, words)
    title = run.path.resolve().name
    return Page(
        "report_of_run",
        words.language,
        title,
        about,
        verdict,
        tiles,
        tuple(parts.sections),
        tuple(parts.left_out),
    )


def _diagnosis(run: Run) -> Diagnosis | None:
    """None before the first row."""
    if not run.evals.rows and not run.metrics.rows:
        return None
    return diagnose_history(of_run(run))


def _findings(diagnosis: Diagnosis, words: Words) -> Findings:
    found = []
    for finding in diagnosis.findings:
        title, remedy = words.finding(finding.kind, finding.title, finding.remedy)
        found.append(Found(title, finding.evidence, remedy, "bad" if finding.is_certain else "unsure"))
    asked = diagnosis.num_rules - len(diagnosis.left_out)
    notes = [] if found else [words("found_nothing", num=asked, total=diagnosis.num_rules)]
    notes += [words("not_asked", num=len(diagnosis.left_out))] if diagnosis.left_out else []
    notes += [words("evidence_is_english")] if found or diagnosis.notes else []
    return Findings(tuple(found), words("what_to_do"), " ".join(note for note in notes if note))


def _answers(parts: _Parts, run: Run, images: bool) -> None:
    """What the best checkpoint answers, of the run or of one of its tasks."""
    words, task = parts.words, run.task
    gains = [gain for gain in run.gains if gain.get("task") == task]
    parts.add("metrics", [answers.metrics_table(gains, words)], task)
    kept = answers.kept_evaluation(run)
    if kept is None:
        why = words("why_episodes" if run.resolved.get("episodes") else "why_not_evaluated")
        parts.lacks("by_class", why)
        parts.lacks("errors", why)
        return
    kind = Side(str(run.path), run).kind
    parts.add("by_label" if kind == _SETS else "by_class", [answers.class_table(kept, words)], task)
    parts.add("confusion", [answers.confusion(kept, words)], task)
    if not images:
        parts.lacks("errors", words("why_no_images"))
        return
    try:
        pictures = open_pictures(run)
    except UserError as error:
        log.warning("no pictures: %s", error.happened)
        parts.lacks("errors", words("why_no_data"))
        return
    for name, gallery in _galleries(run, kind, kept, pictures, words):
        parts.add(name, [gallery], task)


def _galleries(
    run: Run, kind: str | None, kept: answers.Kept, pictures: Pictures, words: Words
) -> list[tuple[str, Gallery | None]]:
    if kind == _SEGMENTATION:
        return [("errors", errors.masks_gallery(kept, pictures, _mask_predictor(run, kept.step), words))]
    if kind == _SETS:
        return [("errors", errors.sets_gallery(kept, pictures, words))]
    return list(errors.class_galleries(kept, pictures, words).items())


def _mask_predictor(run: Run, step: int) -> Callable[[Any], Any] | None:
    """Nothing keeps masks: the model answers the few images of the page again. None where it cannot be restored."""
    from warmstart.analysis.report.mask_answers import mask_predictor

    try:
        return mask_predictor(run, step)
    except UserError as error:
        log.warning("no answers beside the masks: %s", error.happened)
        return None
