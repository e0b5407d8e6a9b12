"""Rules about the schedule and the end of a run: a rate that climbs or dies, patience that counted noise."""

from __future__ import annotations

import math
import re

import numpy as np

from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.diagnose.history import History

_PATIENCE = re.compile(r"no new best in (\d+) validations")
_FEW_ROWS = 8


def stopped_early(history: History) -> Finding | None:
    """Early stopping after so few validations that the noise of val decided (rows 2.01, 2.16, 3A)."""
    if history.run is None:
        return None
    match = _PATIENCE.match(history.run.status.get("stop_reason") or "")
    if match is None or not history.validations:
        return None
    pace = history.run.resolved["pace"]
    patience, last = int(match[1]), history.validations[-1]
    done = last.step / pace["total_steps"]
    waited = patience * pace["eval_every"] / pace["steps_per_epoch"]
    if done > 0.6 or (patience > 2 and waited >= 2):
        return None
    train = history.of_train("loss")
    falling = np.isfinite(train).all() and len(train) > 1 and train[-1] < train[:-1].min()
    told = [
        f"it stopped after {last.epoch:.3g} of {pace['total_steps'] / pace['steps_per_epoch']:.3g} epochs, after"
        f" {patience} validations ({waited:.2g} epochs) without a new best"
    ]
    if history.best is not None and history.noise:
        drop = float(np.nanmax(history.scores) - history.scores[-1])
        told.append(
            f"{history.metric} was {drop:.3f} below its best then; the standard error of val is {history.noise:.3f}"
        )
    if falling:
        told.append(f"the loss of the training images was still falling, {train[0]:.3g} -> {train[-1]:.3g}")
    enough = max(10, math.ceil(5 * pace["steps_per_epoch"] / pace["eval_every"]))
    return Finding(
        "stopped_early",
        0.88,
        "early stopping ended it too early",
        tuple(told),
        f"patience for several epochs ({enough} validations here); `warmstart continue` goes on where it stopped",
        "2.01, 2.16, 3A",
        {"patience": patience, "epochs_waited": waited, "share_done": done},
        {"train.patience": enough},
        on=True,
    )


def schedule(history: History) -> Finding | None:
    """The rate climbed again after it had fallen, or was nothing for a good part of the run (rows 1.15, 3B)."""
    rates = np.array([row.lr for row in history.rows if row.lr is not None])
    epochs = [row.epoch for row in history.rows if row.lr is not None]
    if len(rates) < _FEW_ROWS or rates.max() <= 0 or _has_stages(history):
        return None
    peak = int(rates.argmax())
    falls = np.minimum.accumulate(rates[peak:])
    climb = rates[peak:] / np.maximum(falls, 1e-12)
    at = peak + int(climb.argmax())
    if climb.max() > 1.5 and rates[at] > 0.02 * rates.max():
        return Finding(
            "rate_climbed",
            0.71,
            f"the learning rate climbed again from epoch {epochs[peak + int(falls[: at - peak + 1].argmin())]:.3g} on",
            (
                f"it fell to {falls[at - peak]:.2g} and climbed to {rates[at]:.2g}, of a peak of {rates.max():.2g}",
            ),
            "one schedule over the whole length: a cosine that passes its end climbs back up; continue with --keep"
            " optimizer for a new one",
            "1.15, 3B",
            {"low": float(falls[at - peak]), "high": float(rates[at])},
            {} if history.run is None else {"optim.scheduler": "cosine"},
            since=epochs[at],
        )
    idle = float((rates[peak:] < 0.005 * rates.max()).sum() / len(rates))
    if idle < 0.25:
        return None
    since = epochs[len(rates) - int(idle * len(rates))]
    return Finding(
        "schedule_ended",
        0.71,
        f"the rate was nothing for the last {idle:.0%} of the run",
        (f"below a two-hundredth of its peak {rates.max():.2g} since epoch {since:.3g}",),
        "a schedule as long as the run, or fewer epochs",
        "2.17, 3B",
        {"share_idle": idle},
        {} if history.run is None else {"optim.scheduler": "cosine", "optim.scheduler_gamma": None},
        since=since,
    )


def _has_stages(history: History) -> bool:
    """Stages and rescues change the rate as planned, and a plateau only lowers it."""
    if history.run is None:
        return False
    rows = history.run.metrics.rows
    return len(history.run.plan.get("stages", ())) > 1 or any(row.get("kind") == "rescue" for row in rows)


def waiting(history: History) -> Finding | None:
    """More than a third of the time went into waiting for images (rows 3F, 4.17)."""
    times = {} if history.run is None else history.run.status.get("time") or {}
    total = sum(times.values())
    share = times.get("data", 0.0) / total if total else 0.0
    if total < 60 or share < 0.35:
        return None
    return Finding(
        "waiting_for_data",
        0.3,
        f"it waited for images in {share:.0%} of its time",
        (f"{times['data']:.0f} of {total:.0f} s",),
        "keep decoded images (--cache disk), decode ahead (--workers 4), augment less",
        "3F, 4.17",
        {"share": share, "seconds": times["data"]},
        {"data.workers": 4, "data.cache": "auto"},
    )
