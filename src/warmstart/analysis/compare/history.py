"""What runs say of themselves beside their answers: cost, start, pace, what is left of what they knew. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from warmstart.analysis.compare.measures import MAIN
from warmstart.analysis.compare.sides import Side
from warmstart.config.schema import SELECTION_METRICS
from warmstart.records import RETAIN
from warmstart.run import layout


@dataclass(frozen=True)
class History:
    """None is unknown. `seconds` are of the whole training; `start_loss` and `best` (in `metric`) are of val."""

    label: str
    num_parameters: int | None = None
    num_trained: int | None = None
    macs: int | None = None  # multiply-adds of one image
    bytes_of_weights: int | None = None
    seconds: float | None = None
    metric: str | None = None
    start_loss: float | None = None
    best: float | None = None
    best_step: int | None = None
    steps_to_other: int | None = None  # until its val was as good as the other's best
    retained: dict[str, float] | None = None  # what was measured of --retain at this step
    retained_start: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def histories(first: Side, second: Side) -> tuple[History, History]:
    """Of two models; `steps_to_other` only where both are chosen by one metric on the same data."""
    found = history_of(first), history_of(second)
    same_data = first.data.get("fingerprint") == second.data.get("fingerprint") is not None
    if not same_data or found[0].metric != found[1].metric:
        return found
    one, other = (
        _with_steps(own, side, theirs.best)
        for own, side, theirs in ((found[0], first, found[1]), (found[1], second, found[0]))
    )
    return one, other


def history_of(side: Side) -> History:
    """Of one model."""
    if side.run is None:
        return History(side.label)
    run, metric = side.run, metric_of(side)
    rows, validations = run.plan["rows"], side.validations()
    first_step = run.resolved["pace"].get("first_step", 0)
    best = best_of(validations, metric)
    file = None if side.step is None else run.checkpoint(side.step) / layout.MODEL
    start = next((row for row in validations if row["step"] == first_step), {})
    return History(
        side.label,
        sum(row["num_parameters"] for row in rows),
        sum(row.get("num_trainable", 0) for row in rows),
        run.resolved["model"].get("macs"),  # runs of earlier versions did not count them
        file.stat().st_size if file is not None and file.is_file() else None,
        run.status.get("seconds"),
        metric,
        start.get("loss"),
        best.get(metric),
        best.get("step"),
        None,
        _numbers(side.row(RETAIN)),
        _numbers(next((row for row in side.validations(RETAIN) if row["step"] == first_step), {})),
    )


def metric_of(side: Side) -> str:
    """What the run selects by; of one of several tasks, which are selected together, the task's main metric."""
    assert side.run is not None, "asked of runs"
    metric = str(side.run.resolved["select_by"])
    return metric if side.run.task is None else MAIN[str(side.kind)]


def best_of(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The row with the best value, the first of equals; empty without any."""
    known = [row for row in rows if row.get(metric) is not None]
    sign = SELECTION_METRICS[metric]
    return max(known, key=lambda row: sign * row[metric], default={})


def _with_steps(own: History, side: Side, bar: float | None) -> History:
    """With the first step of its val that is as good as `bar`."""
    if bar is None or own.metric is None:
        return own
    sign = SELECTION_METRICS[own.metric]
    reached = [
        row["step"]
        for row in side.validations()
        if row.get(own.metric) is not None and sign * row[own.metric] >= sign * bar
    ]
    return History(**{**asdict(own), "steps_to_other": min(reached, default=None)})


def _numbers(row: dict[str, Any]) -> dict[str, float] | None:
    """The metrics of a row."""
    known = ("step", "epoch", "num_samples")
    found = {name: v for name, v in row.items() if isinstance(v, (int, float)) and name not in known}
    return found or None


def method_of(side: Side) -> str:
    """How a run trained, in a few words: what of the model, and what beside the labels."""
    if side.run is None:
        return "-"
    resolved, rows = side.run.resolved, side.run.plan["rows"]
    modes = [row["mode"] for row in rows]
    if "lora" in modes:
        rank = (resolved["model"].get("lora") or {}).get("rank")
        words = [f"LoRA {rank}" if rank else "LoRA"]
    elif set(modes[:-1]) == {"frozen"}:
        words = ["head"]
    elif "frozen" in modes:
        words = [f"{sum(mode == 'full' for mode in modes)} of {len(modes)} blocks"]
    else:
        words = ["all"]
    if any(row.get("from_stage") for row in rows):
        words.append("in stages")
    words += ["distilled"] if resolved.get("teachers") else []
    words += ["retained"] if resolved.get("retained") else []
    words += ["continued"] if resolved.get("parent") else []
    words += ["from nothing"] if resolved["model"]["source"]["kind"] == "random" else []
    return ", ".join(words)
