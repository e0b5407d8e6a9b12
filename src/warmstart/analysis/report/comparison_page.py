"""The page of a comparison, by its comparison.json: of two models, of two recipes, or of several runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from warmstart import stats
from warmstart.analysis.compare.differences import Difference
from warmstart.analysis.report.blocks import (
    Bar,
    Block,
    Cell,
    Charts,
    Forest,
    Note,
    Page,
    Section,
    Table,
    Toned,
    Verdict,
)
from warmstart.analysis.report.chart import Series, chart
from warmstart.analysis.report.comparison_parts import checks, commands, costs, samples
from warmstart.analysis.report.numbers import plain, rate, signed
from warmstart.analysis.report.outcome import TONES
from warmstart.analysis.report.words import Words
from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import log
from warmstart.errors import UserError

_MOST_CLASSES, _NUM_COLOURED = 30, 5
_WORDS = {1: "better", -1: "worse", 0: "cannot_tell"}
_OUTCOMES = {1: "better", -1: "worse", 0: "cannot"}


def comparison_page(file: Path, words: Words, images: bool) -> Page:
    """UserError where the file is not what `compare --output-dir` writes."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return _page(found, file, words, images)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        StopIteration,
        RecursionError,
    ) as error:
        raise UserError(
            f"the comparison in {file.parent} is damaged: {error}",
            "what `warmstart compare --output-dir` wrote",
        ) from None


def _page(found: dict[str, Any], file: Path, words: Words, images: bool) -> Page:
    verdict, sections, about = {"models": _models, "recipes": _recipes, "runs": _runs}[found["question"]](
        found, words
    )
    left_out: list[str] = []
    if found["question"] == "models":
        try:
            galleries = samples(found, file.parent, words) if images else ()
        except UserError as error:
            log.warning("no pictures of the samples: %s", error.happened)
            galleries, why = (), "why_no_data"
        else:
            why = "" if images else "why_no_images"
        sections += [Section("samples", words("changed_samples"), galleries)] if galleries else []
        left_out += [f"{words('changed_samples')} ({words(why)})"] if why else []
    if found["notes"]:
        sections.append(Section("notes", words("notes"), tuple(map(Note, found["notes"]))))
    sections.append(Section("reproduce", words("reproduce"), (commands(found, file, words),)))
    name = file.parent.resolve().name
    return Page(
        "report_of_comparison", words.language, name, about, verdict, None, tuple(sections), tuple(left_out)
    )


def _models(found: dict[str, Any], words: Words) -> tuple[Verdict, list[Section], str]:
    rows = [_difference(row) for row in found["metrics"]]
    main = next(row for row in rows if row.name == found["metric"])
    outcome = found["direction"]
    kind = main.name if main.name in ("accuracy", "map", "miou") else "accuracy"
    lines = [
        words(
            "interval_words",
            difference=signed(main.difference, 3),
            level=f"{100 * (1 - found['level']):.4g} %",
            low=signed(main.low, 3),
            high=signed(main.high, 3),
            num=plain(found["num_samples"]),
            fixed=found["fixed"],
            broken=found["broken"],
            fixed_word=words(f"{kind}_fixed"),
            broken_word=words(f"{kind}_broken"),
            p=f"{found['p']:.2g}",
        )
    ]
    lines += [words("about_enough", num=plain(found["enough"]))] if found["enough"] else []
    lines += [words("about_models"), *_looks(found, words)]
    sentence = _sentence(f"b_{_OUTCOMES[outcome]}", found, main, words)
    verdict = Verdict(
        TONES[outcome], words(_WORDS[outcome]), sentence, tuple(lines), _forest(rows, found, words)
    )
    sections = [
        _metric_section(rows, found, words),
        *_classes(found["per_class"], words),
        *checks(found, words),
    ]
    paid = costs(found["histories"], words)
    sections += [] if paid is None else [Section("cost", words("cost"), (paid,))]
    return verdict, sections, f"A {found['models'][0]} · B {found['models'][1]}"


def _recipes(found: dict[str, Any], words: Words) -> tuple[Verdict, list[Section], str]:
    rows = [_difference(row) for row in found["metrics"]]
    main = next(row for row in rows if row.name == found["metric"])
    outcome = found["direction"]
    seeds = " + ".join(str(len(values)) for values in found["values"])
    lines = [
        words(
            "seeds_words",
            difference=signed(main.difference, 3),
            level=f"{100 * (1 - found['level']):.4g} %",
            low=signed(main.low, 3),
            high=signed(main.high, 3),
            p=f"{found['p']:.2g}",
        )
    ]
    lines += (
        [words("enough_seeds", num=found["enough_seeds"])] if found["enough_seeds"] and not outcome else []
    )
    lines += [words("about_recipes"), *_looks(found, words)]
    sentence = _sentence(f"recipe_{_OUTCOMES[outcome]}", found, main, words, seeds)
    verdict = Verdict(
        TONES[outcome], words(_WORDS[outcome]), sentence, tuple(lines), _forest(rows, found, words)
    )
    cells: list[tuple[Cell, ...]] = []
    for name, runs, values in zip("AB", found["recipes"], found["values"], strict=True):
        cells += [(name, run, Bar(plain(value), value)) for run, value in zip(runs, values, strict=True)]
        mean, deviation = stats.spread(values)
        cells.append((name, words("mean"), f"{mean:.4f} ± {deviation:.4f}"))
    table = Table((words("recipe"), words("experiment"), words.known(main.name)), tuple(cells), 2)
    by_class = {"of": "recall", "rows": found["per_class"]}
    sections = [Section("seeds", words("seeds"), (table,)), _metric_section(rows, found, words)]
    sections += [*_classes(by_class, words), *checks(found, words)]
    return verdict, sections, f"{words('recipe')} A · {words('recipe')} B"


def _looks(found: dict[str, Any], words: Words) -> list[str]:
    """Why the level is not 95 %: how often these samples were used to choose, and on val, for the best steps too."""
    looks, parts = found["looks"], []
    for name, word in (
        ("num_pairs", "looks_pairs"),
        ("largest_table", "looks_table"),
        ("num_validations", "looks_val"),
    ):
        parts += [words(word, num=looks[name])] if looks[name] > 1 else []
    lines = [words("val_too_kind")] if found["split"] == "val" else []
    if parts:
        lines.append(words("looks", what=words("and_then").join(parts), num=looks["num_chances"]))
    return lines


def _runs(found: dict[str, Any], words: Words) -> tuple[Verdict, list[Section], str]:
    rows, metric = found["runs"], found["metric"]
    value = plain(rows[0]["best"], 3)
    names = {"num": len(rows), "name": rows[0]["experiment"], "metric": words.known(metric)}
    sentence = words("best_of_runs", **names, value=value)
    verdict = Verdict("plain", words("measured"), sentence, (words("best_of_is_optimistic", num=len(rows)),))
    is_share = SELECTION_METRICS.get(metric, 1) > 0
    cells: list[tuple[Cell, ...]] = [
        (
            row["experiment"],
            Bar(plain(row["best"]), row["best"] or 0.0) if is_share else plain(row["best"]),
            plain(row["final"]),
            signed(row["gap"]),
            plain(row["epochs to best"], 1),
            rate(row["rate"]),
            row["method"],
        )
        for row in rows
    ]
    names_of = ("experiment", "best", "final", "gap", "epochs_to_best", "rate", "method")
    blocks: list[Block] = [Table(tuple(map(words, names_of)), tuple(cells))]
    series = [
        Series(f"of{number}" if number < _NUM_COLOURED else "other", curve["experiment"], curve["points"])
        for number, curve in enumerate(found["curves"])
    ]
    drawn = chart(f"{words('val')}: {words.known(metric)}", words("epoch"), series)
    sections = [Section("runs", words("runs"), tuple(blocks))]
    if drawn is not None:
        legend = tuple((line.style, line.word) for line in series[:_NUM_COLOURED])
        sections.append(Section("curves", words("curves"), (Charts((drawn,), legend),)))
    return verdict, sections, ", ".join(row["run"] for row in rows)


def _difference(row: dict[str, Any]) -> Difference:
    values = {
        name: math.nan if row[name] is None else row[name] for name in ("first", "second", "low", "high")
    }
    return Difference(row["name"], **values, support=row.get("support"))


def _sentence(name: str, found: dict[str, Any], main: Difference, words: Words, num: str = "") -> str:
    return words(
        name,
        split=words.known(found["split"]),
        metric=words.known(main.name),
        first=plain(main.first, 3),
        second=plain(main.second, 3),
        num=num or plain(found["num_samples"]),
    )


def _tone(row: Difference, found: dict[str, Any], unsure: str) -> str:
    """By its interval; of the main metric, as the verdict says: on few changed answers the interval is too sure."""
    low, high = row.gains
    direction = found["direction"] if row.name == found["metric"] else (low > 0) - (high < 0)
    return "good" if direction > 0 else "bad" if direction < 0 else unsure


def _forest(rows: list[Difference], overall: dict[str, Any], words: Words) -> Forest | None:
    """The gains of all metrics that are shares: the loss has an axis of its own, which would dwarf them."""
    found = []
    for row in rows:
        low, high = row.gains
        if row.name != "loss" and math.isfinite(low) and math.isfinite(high):
            text = f"{signed(row.difference, 3)} [{signed(row.low, 3)}, {signed(row.high, 3)}]"
            name = words.known(row.name)
            name = name if row.sign > 0 else words("lower_is_better", name=name)
            found.append((name, text, _tone(row, overall, "unsure"), low, row.gain, high))
    ends = words("axis_worse"), words("axis_start"), words("axis_better")
    return Forest.of(found, ends) if found else None


def _metric_section(rows: list[Difference], found: dict[str, Any], words: Words) -> Section:
    cells = []
    for row in rows:
        change = Toned(signed(row.difference), _tone(row, found, "plain"))
        cells.append(
            (words.known(row.name), plain(row.first), plain(row.second), change, _interval(row, words))
        )
    columns = (words("metric"), "A", "B", words("change"), words("interval"))
    return Section("metrics", words("changes"), (Table(columns, tuple(cells)),))


def _interval(row: Difference, words: Words) -> str:
    return words("from_to", low=signed(row.low), high=signed(row.high))


def _classes(by_class: dict[str, Any], words: Words) -> list[Section]:
    """What has fallen most first."""
    rows = [_difference(row) for row in by_class["rows"]]
    if not rows:
        return []
    note = ""
    if len(rows) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        note = words("classes_between", num=len(rows) - 2 * half)
        rows = [*rows[:half], *rows[-half:]]
    cells: list[tuple[Cell, ...]] = []
    largest = max(abs(row.difference) for row in rows) or 1.0
    for row in rows:
        tone = "good" if row.low > 0 else "bad" if row.high < 0 else "plain"
        bar = Bar(signed(row.difference), row.difference / largest, tone, centred=True)
        cells.append(
            (row.name, plain(row.support), plain(row.first), plain(row.second), bar, _interval(row, words))
        )
    of = words.known(by_class["of"])
    columns = (
        words("class"),
        words("support"),
        f"A: {of}",
        f"B: {of}",
        words("change"),
        words("class_interval"),
    )
    return [Section("classes", words("by_class"), (Table(columns, tuple(cells), note=note),))]
