"""Runs that were made and not trained: blends and compressions, which have a record of their own."""

from __future__ import annotations

import json
import math
from typing import Any

from warmstart.analysis.change import Change
from warmstart.analysis.report.blocks import Bar, Cell, Chip, Forest, Section, Table, Verdict
from warmstart.analysis.report.numbers import NOTHING, counted, plain, share, signed
from warmstart.analysis.report.outcome import TONES
from warmstart.analysis.report.words import Words
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run

_ORIGINAL = {1: "better_than_original", -1: "worse_than_original", 0: "cannot_from_original"}


def is_made(run: Run) -> bool:
    return run.resolved["model"]["source"]["kind"] in ("compress", "blend")


def describe(run: Run, words: Words) -> tuple[Verdict, tuple[Section, ...]]:
    """The verdict, and what was measured on the way."""
    is_blend = (
        run.resolved["model"]["source"]["kind"] == "blend"
    )  # a compression of a blend has its record too
    return _blend(run, words) if is_blend else _compression(run, words)


def _row(label: str, change: Change, words: Words) -> list[tuple[str, str, str, float, float, float]]:
    numbers = change.low, change.difference, change.high
    if not all(map(math.isfinite, numbers)):
        return []
    text = f"{words.known(change.metric)} {signed(numbers[1], 3)} [{signed(numbers[0], 3)}, {signed(numbers[2], 3)}]"
    return [(label, text, TONES[change.direction], *numbers)]


def _forest(rows: list[tuple[str, str, str, float, float, float]], words: Words) -> Forest | None:
    return Forest.of(rows, (words("axis_worse"), words("axis_start"), words("axis_better"))) if rows else None


def _blend(run: Run, words: Words) -> tuple[Verdict, tuple[Section, ...]]:
    record = run.resolved["blend"]
    metric, points = record["metric"], record["points"]
    chosen = next(point for point in points if point["name"] == record["chosen"])
    changes = [(entry, Change.of(entry)) for entry in record["changes"]]
    rule = "blend_rule" if record["start"] is not None else "blend_last"
    lines = [words(rule, start=record["start"], tuned=record["tuned"], rule=record["rule"])]
    rows: list[tuple[str, str, str, float, float, float]] = []
    for entry, change in changes:
        against = "against_start" if entry["against"] == "start" else "against_tuned"
        rows += _row(words(against, split=words.known(entry["split"])), change, words)
    tone = TONES[min((change.direction for _, change in changes), default=0)]
    after = plain(chosen["val"], 3)
    sentence = words("blended", chosen=record["chosen"], metric=words.known(metric), after=after)
    verdict = Verdict(tone, words("made_not_trained"), sentence, tuple(lines), _forest(rows, words))
    names = [name for name in ("val", "retained") if chosen.get(name) is not None]
    values = [[point[name] for point in points] for name in names]
    cells = [
        (
            point["name"],
            *(Bar(plain(value), value or 0.0) for value in column),
            Chip(words("chosen"), "good") if point is chosen else "",
        )
        for point, *column in zip(points, *values, strict=True)
    ]
    heads = {"val": words("val"), "retained": words("retain")}
    columns = (words("weights_of"), *(f"{heads[name]}: {words.known(metric)}" for name in names), "")
    return verdict, (Section("blend", words("blend"), (Table(columns, tuple(cells)),)),)


def _compression(run: Run, words: Words) -> tuple[Verdict, tuple[Section, ...]]:
    """By compression.json; of a single round's edited model, which has none, what was done to it."""
    record = run.resolved["compress"]
    told = words("smaller_told", method=record["method"], told=record["told"])
    file = run.path / layout.COMPRESSION
    if not file.is_file():
        return Verdict("plain", words("made_smaller"), told), ()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        points, test = found["points"], found["test"]
        original, chosen = points[0], next(point for point in points if point["name"] == found["chosen"])
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        raise UserError(f"{file} is damaged", "the JSON that was written") from None
    metric = chosen["metric"]
    change = None if chosen["change"] is None else Change.of(chosen["change"])
    tested = None if test is None else Change.of(test)
    changes = {split: one for split, one in (("val", change), ("test", tested)) if one is not None}
    on = {split: _on(run, split, words) for split in changes}
    rows = [line for split, one in changes.items() for line in _row(on[split], one, words)]
    main = tested or change
    size = chosen["cost"]["num_bytes"] / original["cost"]["num_bytes"]
    values = {"before": plain(original["metrics"][metric], 3), "after": plain(chosen["metrics"][metric], 3)}
    sentence = words("smaller", share=share(size), metric=words.known(metric), split=words("val"), **values)
    lines = [told]
    if main is not None:
        lines.append(words(_ORIGINAL[main.direction], on=on["val" if tested is None else "test"]))
    tone = "plain" if main is None else TONES[main.direction]
    verdict = Verdict(tone, words("made_smaller"), sentence, tuple(lines), _forest(rows, words))
    section = Section("compression", words("compression"), (_points(points, chosen, metric, words),))
    return verdict, (section,)


def _on(run: Run, split: str, words: Words) -> str:
    num = run.resolved["data"]["sizes"][split]
    return words("on_images", split=words(split), images=words("images", num=plain(num)))


def _points(points: list[dict[str, Any]], chosen: dict[str, Any], metric: str, words: Words) -> Table:
    largest = points[0]["cost"]
    rows: list[tuple[Cell, ...]] = []
    for point in points:
        cost = point["cost"]
        latency = (cost.get("latency") or {}).get("1")
        rows.append(
            (
                words("original") if point is points[0] else point["name"],
                Bar(plain(point["metrics"][metric]), point["metrics"][metric] or 0.0),
                counted(cost["num_parameters"]),
                Bar(f"{cost['num_bytes'] / 1e6:.2f}", cost["num_bytes"] / largest["num_bytes"]),
                NOTHING if cost.get("macs") is None else f"{cost['macs'] / 1e6:.2f}",
                NOTHING if latency is None else f"{1e3 * latency['median']:.1f}",
                Chip(words("chosen"), "good") if point is chosen else "",
            )
        )
    names = ("parameters", "megabytes", "macs", "milliseconds")
    head = (words("round"), f"{words('val')}: {words.known(metric)}", *map(words, names), "")
    return Table(head, tuple(rows))
