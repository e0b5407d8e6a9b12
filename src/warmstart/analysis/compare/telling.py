"""A comparison of two models in words: the verdict first, one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from warmstart.analysis.compare.differences import LEVEL
from warmstart.console import table

if TYPE_CHECKING:
    from warmstart.analysis.compare.history import History
    from warmstart.analysis.compare.models import ModelComparison

_NUM_SAMPLES = 5  # ids shown of each kind


def comparison_text(found: ModelComparison) -> str:
    """What `warmstart compare A B` prints."""
    one, other = (answers.side.label for answers in found.answers)
    lines = [
        f"{found.verdict}: {found.headline()}",
        f"A  {one}",
        f"B  {other}",
        "This is about these two models on such images; whether a recipe is better, several seeds of it tell "
        "(--recipes).",
        *([] if found.split != "val" else ["The best steps were chosen on these samples: this is too kind."]),
        f"{found.looks.text(LEVEL)}.",
        *(f"note: {note}" for note in found.notes),
        *check_lines(found.checks),
        "",
        metric_table(found.overall, found.level),
        "",
        found.class_table(),
        "",
        *_changed(found),
        *_calibration(found),
        _cost_table(found.histories),
        *_retained(found.histories),
        "",
        f"tables and pictures: {found.folder or 'not kept; pass --output-dir to keep them'}",
    ]
    return "\n".join(lines)


def percent(level: float) -> str:
    """What an interval at a level holds: 95 %."""
    return f"{100 * (1 - level):.4g} %"


def check_lines(checks: Any) -> list[str]:
    return [f"{'holds' if check.passed else 'FAILS'}: {check.text}: {check.why}" for check in checks]


def metric_table(overall: Any, level: float) -> str:
    """A row per metric."""
    rows = [
        (row.name, row.first, row.second, f"{row.difference:+.4f}", f"{row.low:+.4f} to {row.high:+.4f}")
        for row in overall
    ]
    return table("", ("metric", "A", "B", "change", f"{percent(level)} interval"), rows)


def _changed(found: ModelComparison) -> list[str]:
    """A few of the samples that B broke and fixed."""
    lines = []
    for word, broken in (("broken", True), ("fixed", False)):
        places = found.changed(broken)
        for place in places[:_NUM_SAMPLES].tolist():
            name = found.answers[0].ids[place]
            label = ""
            if found.kind == "classification":
                targets = found.answers[0].targets
                assert targets is not None
                label = f" ({found.answers[0].classes[int(targets[place])]})"
            lines.append(f"{word:7}{name}{label}: {found.answer_of(0, place)} -> {found.answer_of(1, place)}")
        if len(places) > _NUM_SAMPLES:
            lines.append(f"       and {len(places) - _NUM_SAMPLES} more {word}")
    return [*lines, ""] if lines else []


def _calibration(found: ModelComparison) -> list[str]:
    """How sure both are against how right: one class per image only."""
    if found.kind != "classification":
        return []
    parts = []
    for answers, accuracy in zip(found.answers, (found.main.first, found.main.second), strict=True):
        confidence = float(np.mean(answers.scores.max(axis=1)))
        word = "over" if confidence > accuracy else "under"
        parts.append(
            f"{confidence:.4f} sure, {accuracy:.4f} right ({word}confident by {abs(confidence - accuracy):.4f})"
        )
    return [f"calibration: A {parts[0]}; B {parts[1]}", ""]


def _cost_table(histories: tuple[History, History]) -> str:
    """Cost, start and pace; rows that nobody knows are left out."""
    metric = histories[0].metric or histories[1].metric
    rows: list[tuple[str, list[Any]]] = [
        ("parameters", [h.num_parameters for h in histories]),
        ("trained of them", [h.num_trained for h in histories]),
        ("million MACs per image", [None if h.macs is None else h.macs / 1e6 for h in histories]),
        (
            "weights, MB",
            [None if h.bytes_of_weights is None else h.bytes_of_weights / 1e6 for h in histories],
        ),
        ("seconds of training", [h.seconds for h in histories]),
        ("val loss before training", [h.start_loss for h in histories]),
        (f"best val {metric}", [h.best for h in histories]),
        ("reached at step", [h.best_step for h in histories]),
        ("step as good as the other's best", [h.steps_to_other for h in histories]),
    ]
    known = [(name, *values) for name, values in rows if values != [None, None]]
    return table("", ("", "A", "B"), known) if known else "nothing is recorded of their training"


def _retained(histories: tuple[History, History]) -> list[str]:
    """The data of --retain: at the start and at the step that is compared."""
    lines = []
    for name, history in zip("AB", histories, strict=True):
        if history.retained is not None:
            start = history.retained_start or {}
            metric = next((m for m in ("accuracy", "map", "miou") if m in history.retained), "loss")
            before = f"{start[metric]:.4f} -> " if metric in start else ""
            lines.append(f"retained data, {name}: {metric} {before}{history.retained[metric]:.4f}")
    return lines
