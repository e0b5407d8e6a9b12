"""The numbers of a run that are worth a glance, below its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warmstart.analysis.compare.history import metric_of
from warmstart.analysis.compare.measures import MAIN
from warmstart.analysis.compare.sides import Side
from warmstart.analysis.report.answers import kept_evaluation
from warmstart.analysis.report.blocks import Tile, Tiles
from warmstart.analysis.report.numbers import counted, duration, plain, share
from warmstart.analysis.report.outcome import main_of, measured
from warmstart.analysis.report.words import Words
from warmstart.run import layout
from warmstart.run.reader import Run

_MOST_TASKS = 3


def tiles_of(run: Run, words: Words) -> Tiles:
    return Tiles((*_measured(run, words), *_pace(run, words), *_sizes(run, words)))


def _measured(run: Run, words: Words) -> Iterator[Tile]:
    """Of the best checkpoint: by the gains of a training, else by an evaluation, else by its validation."""
    main = main_of(measured(run))
    for gain in main[:_MOST_TASKS]:
        best = next(g["best"] for g in run.gains if (g["split"], g.get("task")) == (gain.split, gain.task))
        metric = gain.change.metric
        # The interval that was measured is of the answers without a threshold.
        note = "" if f"{metric}_at_threshold" in best else _interval(best, metric, words)
        yield Tile(f"{words.known(metric)}, {gain.name(words)}", plain(gain.after, 3), note)
    if len(main) == 1:
        own = next(g for g in run.gains if g["split"] == main[0].split)
        yield from _others(own["best"], own["start"], words)
    if main:
        return
    side = Side(str(run.path), run)
    kept = None if run.tasks else kept_evaluation(run)
    if kept is not None:
        metric, metrics = MAIN[str(side.kind)], kept.results["metrics"]
        label = f"{words.known(metric)}, {words.known(kept.split)}"
        yield Tile(label, plain(metrics.get(metric), 3), _interval(metrics, metric, words))
        yield from _others(metrics, {}, words)
        return
    row = next((row for row in side.validations() if row["step"] == run.pointer(layout.BEST)), None)
    if row is not None:
        metric = metric_of(side)
        label = f"{words.known(metric)}, {words('val')}"
        yield Tile(label, plain(row.get(metric), 3), _interval(row, metric, words))


def _interval(metrics: dict[str, Any], metric: str, words: Words) -> str:
    low, high = (metrics.get(f"{metric}_{end}") for end in ("low", "high"))
    return "" if low is None else words("interval_of", low=plain(low, 3), high=plain(high, 3))


def _others(best: dict[str, Any], start: dict[str, Any], words: Words) -> Iterator[Tile]:
    for name in ("loss", "ece"):
        if best.get(name) is not None:
            note = words("at_start", value=plain(start[name], 3)) if start.get(name) is not None else ""
            yield Tile(words.known(name), plain(best[name], 3), note)


def _pace(run: Run, words: Words) -> Iterator[Tile]:
    """Where the best one was, and how long it took."""
    best, total = run.pointer(layout.BEST), run.resolved["pace"]["total_steps"]
    rows = Side(str(run.path), run).validations()
    row = next((row for row in rows if row["step"] == best), None)
    if row is not None and total:
        epoch = row.get("epoch")
        value = words("at_step", step=best) if epoch is None else words("at_epoch", epoch=f"{epoch:g}")
        yield Tile(words("best_at"), value, words("of_steps", step=best, total=total))
    seconds, spent = run.status.get("seconds"), run.status.get("time") or {}
    if seconds:
        part = spent.get("steps", 0.0) / (sum(spent.values()) or 1.0)
        note = words("time_steps", share=share(part)) if spent else ""
        yield Tile(words("time"), duration(seconds), note)


def _sizes(run: Run, words: Words) -> Iterator[Tile]:
    """Parameters and images."""
    rows = run.plan["rows"]
    num, trained = (sum(row.get(key, 0) for row in rows) for key in ("num_parameters", "num_trainable"))
    if any(row.get("trainable") for row in rows):
        yield Tile(words("trained"), counted(trained), words("of_parameters", num=counted(num)))
    else:
        yield Tile(words("parameters"), counted(num))
    sizes = run.resolved["data"]["sizes"]
    rest = ", ".join(f"{words.known(name)} {size:,}" for name, size in sizes.items() if name != "train")
    yield Tile(f"{words('data')}, {words('train')}", f"{sizes.get('train', 0):,}", rest)
