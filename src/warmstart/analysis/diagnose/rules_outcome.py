"""Rules about what came of it: worse than its start, and what was forgotten."""

from __future__ import annotations

import numpy as np

from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.diagnose.history import History
from warmstart.records import RETAIN


def worse_than_start(history: History) -> Finding | None:
    """No validation reached the start, or the best step is worse on test (rows 0.24, 2.11, 2.21)."""
    gains = [] if history.run is None else history.run.gains
    told = []
    for gain in gains:
        is_worse = (
            gain["low"] is not None and gain["high"] < 0 and gain["p"] < 0.05 and gain["split"] != RETAIN
        )
        if is_worse:
            told.append(f"{gain['split']}: {gain['change']}")
    if history.start is not None and len(history.scores):
        before = history.sign * history.start.val.get(history.metric, np.nan)
        best = float(np.nanmax(history.scores)) if np.isfinite(history.scores).any() else np.nan
        if best < before - 2 * history.noise:
            told.append(
                f"{history.metric} of the start {abs(before):.3f}, at best {abs(best):.3f} afterwards"
            )
    if not told:
        return None
    rate = history.setting("optim.lr", 0.0)
    return Finding(
        "worse_than_start",
        0.5,
        "it is worse than its start",
        tuple(told),
        "half the rate, fewer epochs, first blocks frozen (--freeze 'backbone<2'); or blend the weights with those of"
        " the start (`warmstart blend`)",
        "0.24, 2.21",
        {},
        {} if history.run is None else {"optim.lr": rate / 2},
    )


def forgetting(history: History) -> Finding | None:
    """What the start knew of other data is lost (--retain measures it)."""
    gains = [] if history.run is None else history.run.gains
    lost = [
        gain
        for gain in gains
        if gain["split"] == RETAIN and gain["low"] is not None and gain["high"] < 0 and gain["p"] < 0.05
    ]
    if not lost:
        return None
    worst = min(lost, key=lambda gain: gain["difference"])
    return Finding(
        "forgetting",
        0.73,
        f"it forgot {abs(worst['difference']):.3f} of {worst['metric']} on the data of --retain",
        tuple(gain["change"] for gain in lost),
        "show a part of those data again (--retain.replay .3), hold the weights near the start (--retain.l2sp), or"
        " blend (`warmstart blend`)",
        "4.24",
        {"difference": worst["difference"]},
        {"retain.replay": 0.3},
    )
