"""The curves of a run as charts: what it selects by, the loss, the rate; best step and stages marked."""

from __future__ import annotations

from typing import Any

from warmstart.analysis.compare.history import metric_of
from warmstart.analysis.compare.sides import Side
from warmstart.analysis.report.blocks import Charts, Note
from warmstart.analysis.report.chart import Chart, Series, chart
from warmstart.analysis.report.numbers import plain
from warmstart.analysis.report.outcome import where
from warmstart.analysis.report.words import Words
from warmstart.run import layout
from warmstart.run.reader import Run

Rows = list[dict[str, Any]]


def charts_of(run: Run, words: Words) -> list[Charts | Note]:
    """The block of curves, and what is marked in it; empty without rows. Of several tasks also the metric of each."""
    side = Side(str(run.path), run)
    metric = metric_of(side)
    splits = {"train": side.validations("train"), "val": side.validations()}
    running = [row for row in run.metrics.rows if row.get("kind") == "train"]
    x_name = "epoch" if _epochs_rise(splits["val"]) and _epochs_rise(running) else "step"
    step = run.pointer(layout.BEST)
    best = next((row for row in splits["val"] if row["step"] == step), None)
    stages = _stages(run, x_name, splits["val"] + running, words)
    found: list[Chart | None] = []
    for name in dict.fromkeys((metric, "loss", "lr")):
        series = [
            Series(
                "running" if name != "lr" else "rate", words("running_loss"), _points(running, x_name, name)
            ),
            Series("train", words("train_measured"), _points(splits["train"], x_name, name)),
            Series("val", words("val"), _points(splits["val"], x_name, name)),
        ]
        star = None if best is None else _star(best, x_name, name)
        log_words = words("log_axis") if name == "loss" else ""
        found.append(chart(words.known(name), words(x_name), series, star, stages, log_words))
    found += [_of_task(run, task, x_name, words) for task in run.tasks]
    known = tuple(each for each in found if each is not None)
    if not known:
        return []
    legend = (("val", words("val")), ("train", words("train_measured")), ("running", words("running_loss")))
    styles = {line.style for each in known for line in each.lines}
    notes = [] if best is None else [words("curves_note", where=where(best, words))]
    if len(stages) > 1:
        notes.append(words("stages_note", stages="; ".join(_told_stages(run, words))))
    block = Charts(known, tuple(entry for entry in legend if entry[0] in styles))
    return [block, *([Note(" ".join(notes))] if notes else [])]


def _points(rows: Rows, x_name: str, name: str) -> list[tuple[float, float | None]]:
    known = [(row.get(x_name), row.get(name)) for row in rows]
    return [(float(x), None if y is None else float(y)) for x, y in known if x is not None]


def _epochs_rise(rows: Rows) -> bool:
    """A child whose count of epochs begins again has none that may be drawn."""
    epochs = [row["epoch"] for row in rows if row.get("epoch") is not None]
    return len(epochs) == len(rows) and epochs == sorted(epochs)


def _star(best: dict[str, Any], x_name: str, name: str) -> tuple[float, float | None, str]:
    value = best.get(name)
    return float(best[x_name]), value, "" if value is None else plain(float(value), 3)


def _stages(run: Run, x_name: str, rows: Rows, words: Words) -> list[tuple[float, str]]:
    """(x where it began, its word) of each stage; only where there are several and they have begun."""
    stages = run.plan.get("stages", [])
    begun = [stage["step"] for stage in stages if stage["step"] is not None]
    last = max((row["step"] for row in rows), default=0)
    begun = [step for step in begun if step <= last]
    if len(begun) < 2:
        return []
    per_epoch = run.resolved["pace"]["steps_per_epoch"]
    scale = 1 if x_name == "step" else per_epoch
    return [(step / scale, str(number)) for number, step in enumerate(begun)]


def _told_stages(run: Run, words: Words) -> list[str]:
    return [
        words("stage", number=number, blocks=", ".join(stage["blocks"]) or "–")
        for number, stage in enumerate(run.plan["stages"])
        if stage["step"] is not None
    ]


def _of_task(run: Run, task: dict[str, Any], x_name: str, words: Words) -> Chart | None:
    """The main metric of one of several tasks."""
    side = Side(str(run.path), run.of_task(task["name"]))
    metric = metric_of(side)
    series = [
        Series("train", words("train_measured"), _points(side.validations("train"), x_name, metric)),
        Series("val", words("val"), _points(side.validations(), x_name, metric)),
    ]
    step = run.pointer(layout.BEST)
    best = next((row for row in side.validations() if row["step"] == step), None)
    star = None if best is None else _star(best, x_name, metric)
    return chart(f"{task['name']}: {words.known(metric)}", words(x_name), series, star)
