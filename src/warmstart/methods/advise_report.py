"""Advice for people: what is proposed and why, what it costs here, and a YAML file that runs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.config.places import MEMORY
from warmstart.config.settings_file import comment, settings_lines
from warmstart.console import table
from warmstart.errors import UserError
from warmstart.methods.advise import Proposal, Strategy, Trial
from warmstart.methods.advise_decide import told
from warmstart.methods.advise_facts import GB
from warmstart.methods.advise_rules import Rule
from warmstart.run.writer import write_text
from warmstart.shown import Shown

_WIDTH = 110
_FRANKLY = (
    "The rules are starting points from the founding documents: nobody has measured them on these data, and on ours"
    " only what docs/measurements.md says. Memory and time are measured; a run will tell the rest."
)


@dataclass(frozen=True)
class AdviceResult(Shown):
    """A proposal, and the file that it was written to."""

    proposal: Proposal
    written: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = self.proposal
        notes = told(found.facts)
        return {
            "facts": found.facts.to_json(),
            "method": found.advice.method,
            "settings": [
                {
                    "path": d.path,
                    "value": d.value,
                    "rule": d.rule.id,
                    "row": d.rule.row,
                    "reason": d.rule.reason,
                }
                for d in found.advice.decisions
            ],
            "given": [path for path, origin in found.loaded.origins.items() if origin == "flag"],
            "effective_batch": self._effective,
            "taken": [_said(rule) for rule in found.advice.taken],
            "fits": found.fits,
            "trials": [asdict(trial) for trial in found.trials],
            "strategies": [_strategy(each) for each in found.strategies],
            "warnings": [*(_said(rule) for rule in notes if rule.slot == "warn"), *found.loaded.warnings],
            "later": [_said(rule) for rule in notes if rule.slot == "later"],
            "config": found.loaded.config.model_dump(mode="json"),
            "written": self.written,
            "rules_are": _FRANKLY,
        }

    def text(self) -> str:
        found = self.proposal
        rows = [(d.path, _short(d.value), d.rule.row, d.rule.id) for d in found.advice.decisions]
        reasons = {d.rule.id: d.rule for d in found.advice.decisions}
        lines = [*found.facts.lines(), "", f"method: {found.advice.method}", ""]
        lines += [table("", ("setting", "value", "row", "rule"), rows, left=4), ""]
        lines += [_wrapped(f"{rule.id}: {rule.reason}") for rule in reasons.values()]
        lines += ["", *self._cost(), "", *_ranked(found), ""]
        notes = told(found.facts)
        lines += [_wrapped(f"note ({rule.row}): {rule.reason}") for rule in notes if rule.slot == "warn"]
        lines += [_wrapped(f"note: {warning}") for warning in found.loaded.warnings]
        lines += [_wrapped(f"later ({rule.row}): {rule.reason}") for rule in notes if rule.slot == "later"]
        lines += ["", _wrapped(_FRANKLY, ""), ""]
        if self.written is None:
            return "\n".join([*lines, "nothing was written; --to advice.yaml writes these settings"])
        return "\n".join(
            [*lines, f"{self.written} written; next: warmstart finetune --config {self.written}"]
        )

    @property
    def _effective(self) -> int:
        config = self.proposal.loaded.config
        return config.data.batch_size * config.optim.accumulate

    def _cost(self) -> list[str]:
        found, last = self.proposal, self.proposal.trials[-1]
        config = found.loaded.config
        lines = [
            f"effective batch: {self._effective} = {config.data.batch_size} x {config.optim.accumulate} accumulated",
            f"measured: {_memory(last)}; {last.seconds_per_epoch:.3g} s per epoch, {last.seconds:.3g} s in all"
            f" on this machine ({found.facts.device})",
        ]
        if found.facts.is_planned and found.facts.device != "cuda":
            lines.append(
                f"memory was measured on {found.facts.device} in float32: half precision on a GPU takes less"
            )
        if len(found.trials) > 1:
            lines += [_trial_line(trial) for trial in found.trials]
        lines += [_wrapped(f"for memory ({rule.row}): {rule.reason}") for rule in found.advice.taken]
        if found.fits is False:
            lines.append("NOTHING FITS: this takes the least; a smaller model or --image-size takes less")
        return lines


def _ranked(found: Proposal) -> list[str]:
    """What is worth a try, by rank, and what each takes on this machine."""
    rows = []
    for number, each in enumerate(found.strategies, 1):
        trial, lr = each.trial, each.advice.value("optim.lr", found.loaded.config.optim.lr)
        head = (number, each.name, f"{lr:g}")
        if trial.refused is not None or trial.seconds is None or not trial.seconds_per_epoch:
            rows.append((*head, "", "", "", "", "cannot run here"))
            continue
        memory = "" if trial.memory is None else f"{trial.memory / GB:.2f} GB"
        why = "does not fit" if trial.fits is False else "advised" if each.rule is None else each.rule.id
        epochs = f"{trial.seconds / trial.seconds_per_epoch:.3g}"
        rows.append((*head, epochs, f"{trial.seconds_per_epoch:.3g}", f"{trial.seconds:.3g}", memory, why))
    columns = ("", "strategy", "rate", "epochs", "s/epoch", "s in all", "memory", "rule")
    lines = ["what is worth a try, ranked by the rules and not by results; --run tries the first ones"]
    lines.append(table("", columns, rows, left=2))
    rules = [each.rule for each in found.strategies if each.rule is not None]
    return [*lines, *(_wrapped(f"{rule.id} ({rule.row}): {rule.reason}") for rule in rules)]


def _strategy(each: Strategy) -> dict[str, Any]:
    rule = {"rule": None} if each.rule is None else _said(each.rule)
    return {"name": each.name, **rule, "settings": each.advice.values, **asdict(each.trial)}


def write_config(proposal: Proposal, target: str) -> None:
    """A YAML file of the proposal, with the reasons as comments.

    Raises:
        UserError: data or model live in this process only.
    """
    config = proposal.loaded.config
    if (config.data.path or "").startswith(MEMORY) or (config.model.name or "").startswith("object:"):
        raise UserError(
            "the data or the model are objects of this program, which no file can name",
            "paths, or names of a zoo",
            "leave --to out: `proposal.loaded.config` holds the settings",
        )
    write_text(Path(target), as_yaml(proposal))


def as_yaml(proposal: Proposal) -> str:
    """What was advised and what was given; all other settings are the defaults."""
    last, origins = proposal.trials[-1], proposal.loaded.origins
    rules = {decision.path: decision.rule for decision in proposal.advice.decisions}
    seconds = f"{last.seconds_per_epoch:.3g} s per epoch" if last.seconds_per_epoch is not None else ""
    lines = ["Settings by `warmstart advise`; run them: warmstart finetune --config THIS_FILE"]
    lines += [*proposal.facts.lines(), f"measured: {_memory(last)}; {seconds}", _FRANKLY]
    reasons = {
        path: f"{rules[path].row}, {rules[path].id}: {rules[path].reason}" if path in rules else "given"
        for path in origins
    }
    later = [f"{rule.row}: {rule.reason}" for rule in told(proposal.facts) if rule.slot == "later"]
    head, tail = ([part for line in all_ for part in comment(line)] for all_ in (lines, later))
    return "\n".join([*head, *settings_lines(proposal.loaded.config, reasons), *tail]) + "\n"


def _wrapped(text: str, indent: str = "  ") -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, subsequent_indent=indent))


def _memory(trial: Trial) -> str:
    return (
        "memory cannot be measured here" if trial.memory is None else f"{trial.memory / GB:.2f} GB of memory"
    )


def _trial_line(trial: Trial) -> str:
    what = f"  tried {trial.method}, {trial.batch_size} x {trial.accumulate}"
    what += ", gradient checkpointing" if trial.checkpointing else ""
    if trial.refused is not None:
        return f"{what}: {' '.join(trial.refused.split())[:160]}"
    return f"{what}: {_memory(trial)}, {'fits' if trial.fits else 'does not fit'}"


def _said(rule: Rule) -> dict[str, str]:
    return {"rule": rule.id, "row": rule.row, "reason": rule.reason}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
