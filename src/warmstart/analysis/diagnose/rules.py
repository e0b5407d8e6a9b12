"""The table of rules, what each needs, and the diagnosis that asks them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warmstart.analysis.diagnose import rules_curves, rules_data, rules_model, rules_outcome, rules_stop
from warmstart.analysis.diagnose.findings import Diagnosis, Finding
from warmstart.analysis.diagnose.foreign import read_foreign
from warmstart.analysis.diagnose.history import History, of_run
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run, open_run

if TYPE_CHECKING:
    from warmstart.analysis.diagnose.evidence import Answers, Copies

VALIDATIONS, RUN, OVER, ANSWERS, IMAGES = "validations", "run", "over", "answers", "images"
# What a rule needs -> why it was not asked.
_LACKS = {
    VALIDATIONS: "as there are fewer than two validations after the start",
    RUN: "as only a run directory says what they need",
    OVER: "as the run is not over",
    ANSWERS: "as the best step's answers on val are not there (`warmstart evaluate RUN --split val` writes them)",
    IMAGES: "as the images are not to be had, or are too many",
}


class Rule(NamedTuple):
    """`ask` gives a Finding or None; `needs` are asked for in this order."""

    id: str
    ask: Callable[[Material], Finding | None]
    needs: tuple[str, ...] = (VALIDATIONS,)


@dataclass(frozen=True)
class Material:
    """A history, and what is looked up for single rules, once, where `is_deep`: it costs more than all rows."""

    history: History
    is_deep: bool = True

    @cached_property
    def answers(self) -> Answers | None:
        if self.history.run is None or not self.is_deep:
            return None
        from warmstart.analysis.diagnose.evidence import answers_of

        return answers_of(self.history.run)

    @cached_property
    def copies(self) -> Copies | None:
        if self.history.run is None or not self.is_deep:
            return None
        from warmstart.analysis.diagnose.evidence import divided_source, find_copies

        source = divided_source(self.history.run)
        return None if source is None else find_copies(source)

    def lacks(self, needs: tuple[str, ...]) -> str | None:
        """The first that is not there."""
        history = self.history
        for need in needs:
            is_there = {
                VALIDATIONS: lambda: len(history.validations) > 1,
                RUN: lambda: history.run is not None,
                OVER: lambda: history.is_over,
                ANSWERS: lambda: self.answers is not None,
                IMAGES: lambda: self.copies is not None,
            }[need]()
            if not is_there:
                return need
        return None


def _of(ask: Callable[[History], Finding | None]) -> Callable[[Material], Finding | None]:
    return lambda material: ask(material.history)


def _of_answers(ask: Callable[[History, Answers], Finding | None]) -> Callable[[Material], Finding | None]:
    def with_answers(material: Material) -> Finding | None:
        assert material.answers is not None, "asked for before"
        return ask(material.history, material.answers)

    return with_answers


def _leakage(material: Material) -> Finding | None:
    assert material.copies is not None, "asked for before"
    return rules_data.leakage(material.history, material.copies)


RULES = (
    Rule("head_frozen", _of(rules_model.head_frozen), (RUN,)),
    Rule("weights_never_loaded", _of(rules_model.weights_never_loaded), (RUN,)),
    Rule("weights_bring_nothing", _of(rules_model.weights_bring_nothing), (RUN, VALIDATIONS)),
    Rule("splits_differ", _of(rules_data.splits_differ), (RUN,)),
    Rule("leakage", _leakage, (RUN, IMAGES)),
    Rule("norms", _of(rules_model.norms), (RUN,)),
    Rule("too_regularised", _of(rules_model.too_regularised), (RUN, VALIDATIONS)),
    Rule("stopped_early", _of(rules_stop.stopped_early), (RUN, OVER)),
    Rule("rate_too_high", _of(rules_curves.rate_too_high)),
    Rule("rate_too_low", _of(rules_curves.rate_too_low)),
    Rule("schedule", _of(rules_stop.schedule), ()),
    Rule("still_improving", _of(rules_curves.still_improving), (VALIDATIONS, OVER)),
    Rule("imbalance", _of(rules_data.imbalance), (RUN, VALIDATIONS)),
    Rule("label_noise", _of_answers(rules_data.label_noise), (RUN, ANSWERS)),
    Rule("collapsed", _of_answers(rules_data.collapsed), (RUN, ANSWERS)),
    Rule("frozen_too_much", _of(rules_model.frozen_too_much), (RUN, VALIDATIONS)),
    Rule("overfitting", _of(rules_curves.overfitting)),
    Rule("val_too_small", _of(rules_data.val_too_small)),
    Rule("forgetting", _of(rules_outcome.forgetting), (RUN, OVER)),
    Rule("worse_than_start", _of(rules_outcome.worse_than_start)),
    Rule("waiting_for_data", _of(rules_stop.waiting), (RUN,)),
)

# A finding that explains others: these then stand below it without changes of their own.
EXPLAINS = {
    "rate_too_high": (
        "worse_than_start",
        "overfitting",
        "collapsed",
        "rate_too_low",
        "weights_bring_nothing",
    ),
    "label_noise": ("overfitting", "rate_too_low"),
    "splits_differ": (
        "imbalance",
        "collapsed",
        "worse_than_start",
        "overfitting",
        "label_noise",
        "rate_too_high",
    ),
    "imbalance": ("collapsed",),
    "weights_never_loaded": ("rate_too_low", "still_improving"),
    "weights_bring_nothing": ("still_improving",),
    "norms": ("rate_too_low", "rate_too_high", "overfitting", "weights_bring_nothing"),
    "stopped_early": ("rate_too_high", "rate_too_low", "worse_than_start", "collapsed", "frozen_too_much"),
    "too_regularised": ("rate_too_low", "still_improving", "collapsed"),
    "rate_too_low": ("still_improving", "collapsed", "frozen_too_much", "weights_bring_nothing"),
}


def diagnose_history(history: History, is_deep: bool = True) -> Diagnosis:
    """Every rule that can be asked; findings by their score, those that another one explains left out."""
    material = Material(history, is_deep)
    found: list[Finding] = []
    left_out = []
    for rule in RULES:
        lacks = material.lacks(rule.needs)
        if lacks is not None:
            left_out.append((rule.id, _LACKS[lacks]))
        elif (finding := rule.ask(material)) is not None:
            found.append(finding)
    found.sort(key=lambda finding: -finding.score)
    explained = {name for finding in found if finding.is_certain for name in EXPLAINS.get(finding.id, ())}
    kept = tuple(f for f in found if f.id not in explained or f is found[0])
    return Diagnosis(
        history.name,
        history.program,
        history.state,
        kept,
        len(RULES),
        tuple(left_out),
        _notes(history, [f for f in found if f not in kept]),
    )


def _notes(history: History, explained: list[Finding]) -> tuple[str, ...]:
    notes = list(history.notes)
    if history.num_damaged:
        notes.append(f"{history.num_damaged} damaged rows were skipped")
    if history.validations and (note := rules_model.note_of_start(history)) is not None:
        notes.append(note)
    notes += [f"explained by the above: {finding.title}" for finding in explained]
    return tuple(notes)


def open_history(path: str) -> History:
    """Of a run directory, or of a history of another program.

    Raises:
        UserError: neither, or without rows.
    """
    place = Path(path)
    if layout.is_run(place) or (place.is_dir() and (place / layout.CONFIG).exists()) or not place.exists():
        return of_run(open_run(place))
    return read_foreign(place)


def diagnose_folder(runs: list[Run]) -> list[Diagnosis | tuple[str, str]]:
    """Each run's diagnosis by its rows and records alone, or (path, why there is none)."""
    found: list[Diagnosis | tuple[str, str]] = []
    for run in runs:
        try:
            alone = Run(run.path)  # `runs` would keep the rows of all of them
            found.append(diagnose_history(of_run(alone), is_deep=False))
        except UserError as error:
            found.append((str(run.path), error.happened))
    return found
