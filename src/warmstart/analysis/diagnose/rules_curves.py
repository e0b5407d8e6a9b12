"""Rules about curves: rates, schedules, stopping, overfitting. They work on histories of any program.

Each takes a `History` and gives a `Finding` or None. Evidence is compared with the noise of val: its standard error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.diagnose.history import History

# Rates that recipes of the field use with a start from weights and from nothing (documents 000, 001 and 004; timm).
_SGD = ("sgd", "momentum", "nesterov")
_BANDS = {"adam": (1e-5, 2e-3), "adam, from nothing": (1e-4, 5e-3), "sgd": (5e-4, 0.1)}
_LEAST_CURVE = 3
_LOW, _LITTLE = 5, 0.3  # times the least usual rate; share of the loss


def overfitting(history: History) -> Finding | None:
    """Val's loss has risen since its least while the training images' went on falling (rows 2.11, 4.16, 3G)."""
    losses, train = history.of_val("loss"), history.of_train("loss")
    if len(losses) < _LEAST_CURVE or not np.isfinite(losses).all():
        return None
    least = int(losses.argmin())
    rise = float(losses[-2:].mean() / max(losses[least], 1e-9) - 1)
    is_learning = not np.isfinite(train[-1]) or train[-1] < 0.8 * train[least]
    drop = float(np.nanmax(history.scores) - np.nanmean(history.scores[-2:]))
    if least > len(losses) - _LEAST_CURVE or rise < 0.15 or not is_learning:
        return None
    gap = history.sign * (history.of_train(history.metric)[-1] - history.of_val(history.metric)[-1])
    since = history.validations[least].epoch
    costs = history.metric != "loss" and drop > max(history.noise, 0.005)
    told = [f"val loss {losses[least]:.3g} at epoch {since:.3g}, {losses[-1]:.3g} at the end ({rise:+.0%})"]
    if np.isfinite(train[-1]):
        told.append(f"loss of training images meanwhile {train[least]:.3g} -> {train[-1]:.3g}")
    if np.isfinite(gap):
        told.append(f"train less val at the end: {history.metric} {gap:+.3f}")
    told.append(
        f"{history.metric} has lost {drop:.3f} since its best"
        if costs
        else f"{history.metric} has not fallen: it is the confidence that is wrong, not the answers"
    )
    # A rate or labels that ruin a run let the loss rise as well: those rules are surer of themselves.
    return Finding(
        "overfitting",
        0.65 if costs else 0.45,
        f"it overfits since epoch {since:.3g}",
        tuple(told),
        "stronger augmentation, dropout .25, weight decay x5, early stopping after 5 validations; with few images"
        " train fewer blocks (--freeze, --lora.rank)",
        "2.14, 4.16",
        {"since_epoch": since, "rise": rise, "gap": float(gap), "drop": drop},
        _against_overfitting(history),
        since=since,
    )


def _against_overfitting(history: History) -> dict[str, Any]:
    if history.run is None:
        return {}
    decay = history.setting("optim.weight_decay", 0.01)
    changes: dict[str, Any] = {"optim.weight_decay": max(0.01, min(0.1, 5 * decay))}
    if history.setting("data.augment") in ("auto", "none", "light"):
        changes["data.augment"] = "standard"
    if history.setting("train.patience") is None:
        changes["train.patience"] = 5
    return changes


def still_improving(history: History) -> Finding | None:
    """The best is at the end, val is rising, and the rate was not used up (rows 2.16, 2.21)."""
    scores, losses = history.scores, history.of_val("loss")
    if len(scores) < _LEAST_CURVE or history.best is not history.validations[-1] or not history.is_over:
        return None
    third = max(1, len(scores) // 3)
    gain = float(scores[-1] - scores[-1 - third])
    fall = float(1 - losses[-1] / losses[-1 - third]) if np.isfinite(losses).all() else math.nan
    rate = (
        history.last_rate / history.peak_rate if history.peak_rate and history.last_rate is not None else 1.0
    )
    is_falling = fall > 0.08 if np.isfinite(fall) else gain > max(2 * history.noise, 0.005)
    if not is_falling or gain <= 0 or rate < 0.2:
        return None
    return Finding(
        "still_improving",
        0.72,
        "it was still improving when it stopped",
        (
            f"the last validation is the best; {history.metric} {gain:+.3f} over the last third",
            *([f"val loss fell by {fall:.0%} meanwhile"] if np.isfinite(fall) else []),
            f"the rate at the end was {rate:.0%} of its peak",
        ),
        "twice the epochs; `warmstart continue` keeps all state",
        "2.01, 2.16",
        {"gain": gain, "fall": fall, "rate_left": rate},
        _longer(history),
        on=True,
    )


def _longer(history: History) -> dict[str, Any]:
    if history.run is None:
        return {}
    changes: dict[str, Any] = {"train.epochs": 2 * history.setting("train.epochs", 10)}
    return changes | dict.fromkeys(
        [path for path in ("train.max_steps", "train.time_budget") if history.setting(path) is not None]
    )


def rate_too_high(history: History) -> Finding | None:
    """Failed steps, a loss far above that of the start, a start that was destroyed (rows 0.24, 1.16, 4.15)."""
    told, score = [], 0.0
    rescues = _rescues(history)
    if rescues:
        told.append(f"{rescues} steps failed: their loss or gradient was not finite")
        score = 0.9
    start = history.start
    chance = math.log(history.num_classes) if history.num_classes else None
    first = start.val.get("loss", math.nan) if start is not None else math.nan
    level = max((x for x in (first, chance or math.nan) if not math.isnan(x)), default=0.0)
    is_known, much = level > 0, 1.5
    if not is_known and len(
        history.validations
    ):  # nobody measured the start, and the first epoch has moved it
        level, much = float(history.of_val("loss")[0]), 3.0
    worst = _worst_loss(history)
    high, band = _above_band(history)
    if level and worst > much * level:
        when = "before the first step, or is by chance" if is_known else "at the first validation"
        told.append(f"the loss went up to {worst:.3g}; it was {level:.3g} {when}")
        score = max(score, 0.9 if worst > 2 * level or high else 0.6)
    shaken = _shaken(history)
    if shaken is not None and (high or score):
        told.append(
            f"{history.metric} jumps between validations by {shaken:.3f} on average, {_times(shaken, history)}"
        )
        score = max(score, 0.75)
    lost = _lost_start(history)
    if lost is not None and (high or score):
        told.append(
            f"{history.metric} of the start was {lost[0]:.3f}, after the first validation {lost[1]:.3f}"
        )
        score = max(score, 0.8)
    if high and told:
        told.append(
            f"the rate {history.peak_rate:.2g} is above what is usual with this optimizer ({band[0]:g} to {band[1]:g})"
        )
        score = max(score, 0.9)
    if not score:
        return None
    return Finding(
        "rate_too_high",
        score,
        "the learning rate is too high",
        tuple(told),
        "a tenth of the rate, a warmup over a tenth of the run, gradients clipped at 1; row 1.16 goes down to 1e-5",
        "0.24, 1.16, 4.15",
        {"rescues": rescues, "worst_loss": worst, "level": level, "rate": history.peak_rate},
        _lower_rate(history, band),
    )


def _worst_loss(history: History) -> float:
    """Of the training, where it was written. Val's may be far higher while nothing is wrong: the running statistics of
    norms lag behind weights that move."""
    trained = [row.loss for row in history.rows if row.loss is not None and math.isfinite(row.loss)]
    return max(
        trained or history.of_val("loss")[np.isfinite(history.of_val("loss"))].tolist(), default=math.nan
    )


def _rescues(history: History) -> int:
    if history.run is None:
        return 0
    return sum(row.get("kind") in ("rescue", "failed") for row in history.run.metrics.rows)


def _band(history: History) -> tuple[float, float]:
    optimizer = str(history.setting("optim.optimizer", "adamw"))
    if any(name in optimizer for name in _SGD):
        return _BANDS["sgd"]
    is_new = history.run is not None and history.run.resolved["model"]["source"]["kind"] == "random"
    return _BANDS["adam, from nothing" if is_new else "adam"]


def _above_band(history: History) -> tuple[bool, tuple[float, float]]:
    band = _band(history)
    is_known = history.run is not None and not history.run.config["lora"].get("rank")
    return bool(is_known and history.peak_rate and history.peak_rate > 2 * band[1]), band


def _lower_rate(history: History, band: tuple[float, float]) -> dict[str, Any]:
    if history.run is None:
        return {}
    changes: dict[str, Any] = {"optim.lr": min(history.setting("optim.lr") / 10, band[1])}
    if history.setting("optim.warmup") is None:
        changes["optim.warmup"] = "0.1"
    if history.setting("optim.clip") is None:
        changes["optim.clip"] = 1.0
    return changes


def _shaken(history: History) -> float | None:
    """Mean jump between validations where it is more than three standard errors of a difference."""
    scores = history.scores
    if history.metric == "loss" or len(scores) <= _LEAST_CURVE or not history.noise:
        return None
    jumps = np.abs(np.diff(scores[1:]))
    mean = float(jumps.mean())
    return mean if mean > 3 * history.noise else None


def _times(value: float, history: History) -> str:
    return f"{value / history.noise:.1f} times the standard error of val" if history.noise else ""


def _lost_start(history: History) -> tuple[float, float] | None:
    """(start, first validation) where a start above chance fell by more than three standard errors."""
    if history.start is None or not len(history.scores) or not history.noise:
        return None
    before = history.sign * history.start.val.get(history.metric, math.nan)
    chance = 1 / history.num_classes if history.num_classes else 0.0
    if not before > max(2 * chance, history.scores[0] + 3 * history.noise):
        return None
    return before, float(history.scores[0])


def rate_too_low(history: History) -> Finding | None:
    """The loss has hardly moved, and the training images are not learned (rows 2.15, 1.04).

    Norms that take in new images let val rise at any rate, and with it every loss that is measured with their running
    statistics: what counts is how far the loss fell since the first epoch, at a low rate that of the training itself.
    """
    train, means = history.of_train("loss"), np.array([mean for _, mean in history.means])
    band, rate = _band(history), history.peak_rate
    is_low = rate is not None and history.run is not None and rate < _LOW * band[0]
    curves = [curve for curve in (means, train) if len(curve) >= _LEAST_CURVE and np.isfinite(curve).all()]
    falls = [_fall(curve) for curve in (curves[:1] if is_low else curves)]
    if not falls or history.best is None or max(falls) > (_LITTLE if is_low else _LITTLE / 2):
        return None
    learned = history.of_train(history.metric)[-1]
    # Norms that take in the new images may do most of the work: at a low rate "learned" is nearly all.
    is_done = history.metric != "loss" and learned > (0.98 if is_low else 0.9)
    if is_done or not (is_low or _is_falling(train if len(train) >= _LEAST_CURVE else means)):
        return None
    of_val = history.of_val(history.metric)
    told = [
        f"since the first epoch the loss of training images fell by {max(falls):.0%} only"
        + (f", {means[0]:.3g} -> {means[-1]:.3g}" if len(means) else ""),
        f"{history.metric} on val {of_val[0]:.3f} at the first validation, {of_val[-1]:.3f} at the last",
    ]
    if np.isfinite(learned):
        told.append(f"{history.metric} of the training images themselves is {learned:.3f}")
    if is_low:
        told.append(f"the rate was {rate:.2g}; usual with this optimizer are {band[0]:g} to {band[1]:g}")
    lr = history.setting("optim.lr")
    return Finding(
        "rate_too_low",
        0.8 if is_low else 0.6,
        "the learning rate is too low",
        tuple(told),
        "ten to a hundred times the rate; row 2.15 goes up by half where it was nearly right",
        "2.15",
        {"fall": max(falls), "rate": rate},
        {} if lr is None else {"optim.lr": min(band[1] / 2, 100 * lr if is_low else 3 * lr)},
    )


def _fall(curve: NDArray[np.float64]) -> float:
    """Share of the first value that is gone at the last one."""
    return float(1 - curve[-1] / curve[0]) if curve[0] > 0 else 1.0


def _is_falling(curve: NDArray[np.float64]) -> bool:
    """Whether the last third still fell, and the end is the least."""
    third = max(1, len(curve) // 3)
    return bool(curve[-1] == curve.min() and curve[-1] < 0.98 * curve[-1 - third])
