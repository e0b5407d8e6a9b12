"""The page of a sweep, by its sweep.json: the best trial and what that is worth, all trials, what mattered."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from warmstart.analysis.compare.sides import Side
from warmstart.analysis.report.blocks import (
    Bar,
    Cell,
    Charts,
    Chip,
    Commands,
    Facts,
    Note,
    Page,
    Section,
    Table,
    Verdict,
)
from warmstart.analysis.report.chart import Series, chart
from warmstart.analysis.report.numbers import NOTHING, duration, plain, share
from warmstart.analysis.report.outcome import main_of, measured, sentence_of
from warmstart.analysis.report.words import Words
from warmstart.config.schema import SELECTION_METRICS
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run

_ORDER = ("finished", "stopped", "paused", "running", "failed", "waiting")
_TONES = {"finished": "good", "failed": "bad", "running": "unsure", "paused": "unsure"}
_MOST_ROWS, _NUM_COLOURED, _FEW, _LONG = 60, 5, 20, 6


def sweep_page(file: Path, words: Words) -> Page:
    """UserError where the file is not what `sweep` writes."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        sign = SELECTION_METRICS.get(found["metric"], 1)
        trials = sorted(found["trials"], key=lambda row: _rank(row, sign))
        best = next((row for row in trials if row["number"] == found["best"]), None)
        verdict = _verdict(found, best, file.parent, words)
        sections = [Section("trials", words("trials"), (_table(trials, found, words),))]
        curves = _curves(trials, found["metric"], file.parent, words)
        sections += [] if curves is None else [Section("curves", words("curves"), (curves,))]
        if found["importance"]:
            sections.append(Section("importance", words("importance"), _importance(found, trials, words)))
        rows = [(name, str(text)) for name, text in found["space"].items()]
        rows += [(words("method"), found["method"]), (words("pruning"), found["prune"])]
        sections.append(Section("space", words("space"), (Facts(tuple(rows)),)))
        if found["notes"]:
            sections.append(Section("notes", words("notes"), tuple(map(Note, found["notes"]))))
        sections.append(
            Section("reproduce", words("reproduce"), (_commands(found, best, file.parent, words),))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}", "what `warmstart sweep` wrote") from None
    name = file.parent.resolve().name
    about = ", ".join(f"{key} {text}" for key, text in found["space"].items())
    return Page("report_of_sweep", words.language, name, about, verdict, None, tuple(sections))


def _rank(row: dict[str, Any], sign: int) -> tuple[int, float, int]:
    value = 0.0 if row["value"] is None else -sign * row["value"]
    return _ORDER.index(row["state"]), value, row["number"]


def _run_of(row: dict[str, Any], folder: Path) -> Run | None:
    """Where the trial's run lies, if it is there: as it was written, or in the sweep's folder where that lies now."""
    if row["run"] is None:
        return None
    for place in (Path(row["run"]), folder / layout.TRIALS / Path(row["run"]).name):
        if layout.is_run(place):
            return Run(place)
    return None


def _verdict(found: dict[str, Any], best: dict[str, Any] | None, folder: Path, words: Words) -> Verdict:
    known = [row for row in found["trials"] if row["value"] is not None]
    waits = sum(row["state"] in ("waiting", "paused", "running") for row in found["trials"])
    lines = [words("trials_left", num=waits)] if waits else []
    if best is None:
        return Verdict("plain", words("so_far"), words("no_trial"), tuple(lines))
    told = ", ".join(f"{name} {_short(value)}" for name, value in best["values"].items())
    numbers = {"num": len(known), "number": best["number"], "values": told}
    value = plain(best["value"], 3)
    sentence = words("best_of_trials", metric=words.known(found["metric"]), value=value, **numbers)
    lines = [words("chosen_on_val", num=len(known)), *lines] if len(known) > 1 else lines
    run = _run_of(best, folder)
    gains = [] if run is None else [gain for gain in main_of(measured(run)) if gain.split == "test"]
    lines += [sentence_of(gain, words) for gain in gains]
    stopped = [row for row in found["trials"] if row["state"] == "stopped" and row["total_steps"]]
    if stopped:
        done, planned = (sum(row[name] for row in stopped) for name in ("step", "total_steps"))
        lines.append(words("stopped_trials", num=len(stopped), done=plain(done), planned=plain(planned)))
    return Verdict("plain", words("so_far" if waits else "measured"), sentence, tuple(lines))


def _short(value: Any) -> str:
    """A number that was drawn, with four digits; any other value as it is."""
    try:
        return f"{float(value):.4g}" if len(str(value)) > _LONG else str(value)
    except ValueError:
        return str(value)


def _table(trials: list[dict[str, Any]], found: dict[str, Any], words: Words) -> Table:
    """The finished ones first, each group by value."""
    names = list(found["space"])
    is_share = SELECTION_METRICS.get(found["metric"], 1) > 0
    rows: list[tuple[Cell, ...]] = []
    for row in trials[:_MOST_ROWS]:
        value = plain(row["value"])
        state = words.known(f"trial_{row['state']}")
        rows.append(
            (
                str(row["number"]),
                Chip(state, _TONES.get(row["state"], "plain")),
                Bar(value, row["value"] or 0.0) if is_share else value,
                *(_short(row["values"].get(name, NOTHING)) for name in names),
                NOTHING if row["total_steps"] is None else f"{row['step']} / {row['total_steps']}",
                duration(row["seconds"]) if row["seconds"] else NOTHING,
                row["reason"],
            )
        )
    metric = "" if found["metric"] is None else words.known(found["metric"])
    columns = (
        words("trial"),
        words("state"),
        f"{words('val')}: {metric}",
        *names,
        words("step"),
        words("time"),
        "",
    )
    left_out = len(trials) - len(rows)
    note = words("trials_left_out", num=left_out, file=layout.SWEEP) if left_out else ""
    return Table(columns, tuple(rows), 2, note=note)


def _curves(trials: list[dict[str, Any]], metric: str | None, folder: Path, words: Words) -> Charts | None:
    """The metric of val in every trial whose run is there, the best ones in colours."""
    series: list[Series] = []
    for row in trials[:_MOST_ROWS]:
        run = _run_of(row, folder)
        if run is not None and metric is not None:
            rows = Side(str(run.path), run).validations()
            points = [(r["epoch"], r.get(metric)) for r in rows if r.get("epoch") is not None]
            style = f"of{len(series)}" if len(series) < _NUM_COLOURED else "other"
            series.append(Series(style, f"{words('trial')} {row['number']}", points))
    if metric is None:
        return None
    title = f"{words('val')}: {words.known(metric)}"
    drawn = chart(title, words("epoch"), series[::-1])  # the best on top
    legend = tuple((one.style, one.word) for one in series[:_NUM_COLOURED])
    return None if drawn is None else Charts((drawn,), legend)


def _importance(
    found: dict[str, Any], trials: list[dict[str, Any]], words: Words
) -> tuple[Table | Note, ...]:
    """The share of each setting in the differences between finished trials."""
    pairs = sorted(found["importance"].items(), key=lambda pair: -pair[1])
    rows = tuple((name, Bar(share(value), value)) for name, value in pairs)
    num = sum(row["state"] == "finished" for row in trials)
    few = (Note(words("few_trials", num=num)),) if num < _FEW else ()
    return (Table((words("setting"), words("share")), rows), *few)


def _commands(found: dict[str, Any], best: dict[str, Any] | None, folder: Path, words: Words) -> Commands:
    rows = []
    if best is not None:
        rows.append(
            (
                words("run_best"),
                f"warmstart finetune --config {shlex.quote(str(folder / layout.BEST_CONFIG))}",
            )
        )
    if not found["finished"]:
        rows.append((words("sweep_on"), f"warmstart sweep {shlex.quote(str(folder))}"))
    rows.append(
        (words("report_again"), f"warmstart report {shlex.quote(str(folder))} --lang {words.language}")
    )
    return Commands(tuple(rows))
