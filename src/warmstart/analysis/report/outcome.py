"""The verdict of a run, as its page opens with it: what it is worth against its start, by the paired test it recorded.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from warmstart.analysis.change import Change
from warmstart.analysis.compare.differences import LEVEL, ExactTest
from warmstart.analysis.compare.history import best_of, metric_of
from warmstart.analysis.compare.sides import Side
from warmstart.analysis.diagnose.findings import Diagnosis
from warmstart.analysis.report.blocks import Forest, Verdict
from warmstart.analysis.report.numbers import NOTHING, plain, signed
from warmstart.analysis.report.words import Words
from warmstart.errors import listing
from warmstart.records import RETAIN
from warmstart.run.lineage import compare_with_parent
from warmstart.run.reader import Run

TONES = {1: "good", -1: "bad", 0: "unsure"}
_SENTENCES = {1: "better_than_start", -1: "worse_than_start", 0: "cannot_be_told"}
_WORDS = {1: "better", -1: "worse", 0: "cannot_tell"}


@dataclass(frozen=True)
class Measured:
    """One entry of gains.json: the paired change on a split, of a task or of the run."""

    change: Change
    split: str
    num: int
    before: float | None
    after: float | None
    best_step: int
    start_step: int
    task: str | None
    unit: str  # of what it was measured: images, or episodes

    @classmethod
    def of(cls, gain: dict[str, Any], unit: str) -> Measured:
        change = Change.of(gain)
        before, after = (
            metrics.get(f"{change.metric}_at_threshold", metrics.get(change.metric))
            for metrics in (gain["start"], gain["best"])
        )
        return cls(
            change,
            split=gain["split"],
            num=gain["num_samples"],
            before=before,
            after=after,
            best_step=gain["best_step"],
            start_step=gain.get("start_step", 0),
            task=gain.get("task"),
            unit=unit,
        )

    @property
    def is_kept(self) -> bool:
        """Whether nothing better than the start, or than the parent's best, was found."""
        return self.best_step <= self.start_step

    @property
    def direction(self) -> int:
        return 0 if self.is_kept else self.change.direction

    def counted(self, words: Words) -> str:
        return words(self.unit, num=plain(self.num))

    def name(self, words: Words) -> str:
        split = words.known(self.split)
        return split if self.task is None else words("of_task", name=split, task=self.task)


def measured(run: Run) -> list[Measured]:
    unit = "images" if run.resolved.get("episodes") is None else "episodes"
    return [Measured.of(gain, unit) for gain in run.gains]


def main_of(gains: list[Measured]) -> list[Measured]:
    """One per task, or the one of the run: that of test, else of val, else of train."""
    found: dict[str | None, Measured] = {}
    for split in ("train", "val", "test"):
        found |= {gain.task: gain for gain in gains if gain.split == split}
    return list(found.values())


def verdict_of(run: Run, diagnosis: Diagnosis | None, words: Words) -> Verdict:
    """The sentence of a run that was trained: finished, in progress, or stopped."""
    gains = measured(run)
    main = main_of(gains)
    state = run.status["state"]
    if not main or state != "finished":
        return _so_far(run, state, diagnosis, words)
    if len(main) > 1:
        num = sum(gain.direction > 0 for gain in main)
        tone = "good" if num == len(main) else "bad" if any(g.direction < 0 for g in main) else "unsure"
        sentence = words("tasks_better", num=num, total=len(main))
        word = (
            "partly"
            if num and tone != "good"
            else {"good": "better", "bad": "worse", "unsure": "cannot_tell"}[tone]
        )
        tone, word = ("plain", "unchanged") if all(gain.is_kept for gain in main) else (tone, word)
        told = [(sentence_of(gain, words), *_caveats(run, gain, words)) for gain in main]
        lines = [f"{gain.task}: {' '.join(said)}" for gain, said in zip(main, told, strict=True)]
    else:
        (gain,) = main
        tone, word = TONES[gain.direction], _WORDS[gain.direction]
        if gain.is_kept:
            tone, word = "plain", "unchanged"
        sentence = sentence_of(gain, words)
        lines = [_change_line(gain, words)] if word != "unchanged" else []
        lines += _caveats(run, gain, words)
    lines += [_retained(gain, words) for gain in gains if gain.split == RETAIN]
    lines += [*_parent(run, words), *_diagnosis(diagnosis, words)]
    return Verdict(tone, words(word), sentence, tuple(lines), _forest(gains, words))


def sentence_of(gain: Measured, words: Words) -> str:
    """The first sentence of a verdict."""
    name = _SENTENCES[gain.direction]
    if gain.is_kept:
        name = "start_kept" if gain.best_step == gain.start_step else "parent_kept"
    return words(
        name,
        metric=words.known(gain.change.metric),
        before=plain(gain.before, 3),
        after=plain(gain.after, 3),
        split=gain.name(words) if gain.task is None else words.known(gain.split),
        num=gain.counted(words),
    )


def _change_line(gain: Measured, words: Words) -> str:
    change = gain.change
    if gain.unit == "episodes":
        numbers = {"num": gain.num, "fixed": change.fixed, "broken": change.broken, "p": f"{change.p:.2g}"}
        values = {name: signed(getattr(change, name), 3) for name in ("difference", "low", "high")}
        return words("episodes_line", **numbers, **values)
    return words(
        "change_line",
        difference=signed(change.difference, 3),
        low=signed(change.low, 3),
        high=signed(change.high, 3),
        num=plain(gain.num),
        fixed=change.fixed,
        broken=change.broken,
        fixed_word=words(f"{change.metric}_fixed"),
        broken_word=words(f"{change.metric}_broken"),
        p=f"{change.p:.2g}",
    )


def _caveats(run: Run, gain: Measured, words: Words) -> list[str]:
    lines = []
    if gain.direction == 0 and not gain.is_kept:
        test = ExactTest(gain.change.fixed, gain.change.broken, gain.change.p)
        enough = test.enough(gain.num, LEVEL)
        lines += [] if enough is None else [words("about_enough", num=plain(enough))]
    if gain.split == "val":
        lines.append(words("val_too_kind"))
    if gain.unit == "episodes":
        own, classes = run.config["meta"], run.resolved["episodes"]["classes"].get(gain.split, ())
        lines.append(words("episodes_about", way=own["way"], shot=own["shot"], classes=listing(classes, 8)))
    if gain.direction > 0 and gain.unit == "images" and _starts_by_chance(run, gain):
        lines.append(words("head_is_new"))
    return lines


def _starts_by_chance(run: Run, gain: Measured) -> bool:
    """Whether the head was made anew, and the start's accuracy is within two standard errors of 1/K (other metrics
    have no such bound)."""
    own = next((task for task in run.tasks if task["name"] == gain.task), run.resolved["model"])
    if own["head"]["kind"] != "new":
        return False
    if gain.change.metric != "accuracy" or gain.before is None:
        return True
    chance = 1 / len(own["classes"])
    return gain.before <= chance + 2 * math.sqrt(chance * (1 - chance) / gain.num)


def _retained(gain: Measured, words: Words) -> str:
    name = {-1: "forgot", 0: "kept_retained", 1: "gained_retained"}[gain.change.direction]
    return words(
        name,
        difference=plain(abs(gain.change.difference), 3),
        metric=words.known(gain.change.metric),
        before=plain(gain.before, 3),
        after=plain(gain.after, 3),
    )


def _parent(run: Run, words: Words) -> list[str]:
    found = compare_with_parent(run)
    if found is None:
        return []
    values = {"bar": plain(found.bar, 3), "value": plain(found.value, 3)}
    return [words("against_parent", parent=found.parent, metric=words.known(found.metric), **values)]


def _diagnosis(diagnosis: Diagnosis | None, words: Words) -> list[str]:
    if diagnosis is None:
        return []
    if not diagnosis.findings:
        asked = diagnosis.num_rules - len(diagnosis.left_out)
        return [words("diagnosis_clean", num=asked, total=diagnosis.num_rules)]
    titles = [words.finding(f.kind, f.title, f.remedy)[0] for f in diagnosis.findings]
    more = words("and_more", num=len(titles) - 2) if len(titles) > 2 else ""
    return [words("diagnosis_line", title="; ".join(titles[:2]) + more)]


def _forest(gains: list[Measured], words: Words) -> Forest | None:
    rows = []
    for gain in gains:
        change = gain.change
        numbers = change.low, change.difference, change.high
        if all(map(math.isfinite, numbers)):
            low, value, high = (signed(number, 3) for number in numbers)
            text = f"{words.known(change.metric)} {value} [{low}, {high}]"
            label = f"{gain.name(words)} · {gain.counted(words)}"
            rows.append((label, text, TONES[gain.direction], *numbers))
    ends = words("axis_worse"), words("axis_start"), words("axis_better")
    return Forest.of(rows, ends) if rows else None


def where(row: dict[str, Any], words: Words) -> str:
    """Epoch and step of a row."""
    step, epoch = words("at_step", step=row["step"]), row.get("epoch")
    return step if epoch is None else f"{words('at_epoch', epoch=f'{epoch:g}')} ({step})"


def _so_far(run: Run, state: str, diagnosis: Diagnosis | None, words: Words) -> Verdict:
    """Of a run that has not measured its result: its best validation."""
    side = Side(str(run.path), run)
    metric, rows = metric_of(side), side.validations()
    best = best_of(rows, metric)
    is_over = state == "finished"
    total = run.resolved["pace"]["total_steps"]
    last = max((row["step"] for row in (*rows, *run.metrics.rows)), default=0)
    lines = [] if is_over else [words("in_progress_line", state=words.known(state), step=last, total=total)]
    if not best and is_over:
        lines += _diagnosis(diagnosis, words)
        return Verdict("plain", words("trained_whole"), words("without_val"), tuple(lines))
    if not best:
        return Verdict("plain", words("so_far"), words("nothing_yet"), tuple(lines))
    first = run.resolved["pace"].get("first_step", 0)
    start = next((row.get(metric) for row in rows if row["step"] == first), None)
    sentence = words(
        "only_val" if is_over else "so_far_sentence",
        metric=words.known(metric),
        value=plain(best[metric], 3),
        where=where(best, words),
        start=NOTHING if start is None else plain(start, 3),
    )
    word = "measured" if is_over else "so_far" if state == "running" else "stopped"
    lines += [*_parent(run, words), *_diagnosis(diagnosis, words)]
    return Verdict("plain", words(word), sentence, tuple(lines))
