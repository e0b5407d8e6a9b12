"""Rules about the model and its plan: what is frozen, norms, dropout, weights that never arrived."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.diagnose.history import History

_SMALL_BATCH, _TINY_BATCH = 4, 2
_MUCH_DROPOUT = 0.6
_UNSURE = 1.3  # times the loss of chance: above it a head prefers classes, and so was trained
_LOOK = (
    "look at the file, at --mean and --std, and at the order of its classes; or the images are too different"
)


def weights_never_loaded(history: History) -> Finding | None:
    """A start whose head was kept knows nothing, or random weights were frozen (rows 3C, 3.13, 1.27).

    Never trained, a head gives every class about the same score: the loss is that of chance, ln K. One that was trained
    is sure of itself, and where it does not fit the images its loss is far above that (`weights_bring_nothing`).
    """
    if history.run is None:
        return None
    source = history.run.resolved["model"]["source"]
    if source["kind"] == "random":
        rows = history.run.plan["rows"]
        rows = rows[:-1] if _by_prototypes(history) else rows
        frozen = [row["name"] for row in rows if not row["trainable"]]
        return None if not frozen else _frozen_at_random(frozen)
    chance = start_at_chance(history)
    if chance is None or chance.loss > _UNSURE * chance.even:
        return None
    after = (
        ""
        if not history.validations
        else (f"; {history.validations[0].val.get('accuracy', math.nan):.3f} at the first validation")
    )
    return Finding(
        "weights_never_loaded",
        0.93,
        "the start knows nothing: its weights never arrived",
        (chance.told + after, f"no class is preferred, as before any training; {chance.kept}"),
        "look at the file with `warmstart inspect`: were its weights ever trained, and do its names fit? next.yaml"
        " trains as from nothing, longer",
        "1.27, 3.13, 3C",
        {"accuracy": chance.accuracy, "loss": chance.loss, "chance": 1 / chance.num_classes},
        _from_nothing(history),
    )


class AtChance(NamedTuple):
    """A start that answers by chance though its head was kept; `even` is the loss of K equal scores."""

    accuracy: float
    loss: float
    num_classes: int
    kept: str

    @property
    def even(self) -> float:
        return math.log(self.num_classes)

    @property
    def told(self) -> str:
        return (
            f"before the first step accuracy {self.accuracy:.3f} and loss {self.loss:.3g} on val; chance is"
            f" {1 / self.num_classes:.3f} and {self.even:.3g}"
        )


def start_at_chance(history: History) -> AtChance | None:
    """Accuracy's interval reaches 1/K, and the loss is not below that of chance by a tenth."""
    num = history.num_classes
    if history.run is None or num is None or history.start is None:
        return None
    source, head = (history.run.resolved["model"][name] for name in ("source", "head"))
    val = history.start.val
    low, loss = val.get("accuracy_low"), val.get("loss")
    if source["kind"] == "random" or head["kind"] != "kept" or low is None or loss is None:
        return None
    if low > 1 / num or loss < 0.9 * math.log(num):
        return None
    kept = f"yet its head was kept ({head['reason']}), from {source.get('path') or source['kind']}"
    return AtChance(val["accuracy"], loss, num, kept)


def weights_bring_nothing(history: History) -> Finding | None:
    """A start that is sure of wrong answers, and that learns no faster for it: nobody can tell here whether the file is
    the wrong one, its pixels or classes mean something else, or the images are too different (rows 3C, 1.27)."""
    chance = start_at_chance(history)
    if chance is None or chance.loss <= _UNSURE * chance.even or not is_slow(history, 1 / chance.num_classes):
        return None
    return Finding(
        "weights_bring_nothing",
        0.71,
        "the start brings nothing: it is sure of itself, and right by chance",
        (
            chance.told,
            chance.kept,
            "half of what was learned came after a third of the run, or hardly anything was",
        ),
        _LOOK + "; next.yaml trains as from nothing, longer",
        "1.27, 3C",
        {"accuracy": chance.accuracy, "loss": chance.loss, "chance": 1 / chance.num_classes},
        _from_nothing(history),
    )


def note_of_start(history: History) -> str | None:
    """What is no fault where it learned fast, but worth a look."""
    chance = start_at_chance(history)
    if chance is None or chance.loss <= _UNSURE * chance.even or is_slow(history, 1 / chance.num_classes):
        return None
    return f"{chance.told}: sure of itself, and right by chance, yet it learned fast from there; {_LOOK}"


def is_slow(history: History, chance: float) -> bool:
    """Whether accuracy needed more than a third of the run for half of its way up from chance, or went no way."""
    right = history.of_val("accuracy")
    if not len(right) or not np.isfinite(right).all():
        return True
    best, noise = float(right.max()), history.noise if history.metric == "accuracy" else 0.0
    half = int((right >= (chance + best) / 2).argmax())
    is_late = history.validations[half].epoch > max(1.0, history.validations[-1].epoch / 3)
    return best < chance + max(3 * noise, 0.05) or is_late


def _from_nothing(history: History) -> dict[str, Any]:
    return {
        "train.epochs": 3 * history.setting("train.epochs", 10),
        "optim.lr": max(1e-3, history.setting("optim.lr")),
        "adapt.freeze": [],
        "adapt.unfreeze": [],
    }


def _frozen_at_random(frozen: list[str]) -> Finding:
    return Finding(
        "weights_never_loaded",
        0.95,
        "frozen blocks have random weights",
        (f"no weights were loaded, and {', '.join(frozen)} never train",),
        "name the weights (--weights), or freeze nothing",
        "3.13, 3C",
        {"frozen": frozen},
        {"adapt.freeze": []},
        variant="frozen",
    )


def _by_prototypes(history: History) -> bool:
    """ProtoNet (Snell et al. 2017) asks nothing of the head, so it is frozen."""
    assert history.run is not None, "asked for a run only"
    return history.run.resolved.get("episodes") is not None and history.setting("meta.method") == "protonet"


def head_frozen(history: History) -> Finding | None:
    """The head is new and frozen: its random rows never learn (rows 1.18, 3C). Blends and compressions train none."""
    if history.run is None or _by_prototypes(history):
        return None
    if history.run.resolved["model"]["source"]["kind"] in ("blend", "compress"):
        return None
    rows, head = history.run.plan["rows"], history.run.resolved["model"]["head"]
    last = rows[-1]
    if last["trainable"] or head["kind"] == "kept":
        return None
    return Finding(
        "head_frozen",
        0.96,
        "the head is new, and frozen",
        (
            f"{last['name']}: {last['mode']}, none of {last['num_parameters']:,} parameters trained",
            f"head {head['kind']}: {head['reason']}",
        ),
        "train the head: leave it out of --freeze; row 1.18 freezes everything but the head",
        "1.18, 3C",
        {"block": last["name"], "new": len(head.get("new", ()))},
        {"adapt.freeze": [name for name in _frozen_names(history) if name not in ("head", last["name"])]},
    )


def _frozen_names(history: History) -> list[str]:
    given = history.setting("adapt.freeze") or ()
    return list(given)


def frozen_too_much(history: History) -> Finding | None:
    """Little trains, and even the training images are not learned (rows 1.19, 4.09)."""
    if history.run is None or history.best is None:
        return None
    rows = history.run.plan["rows"]
    trained = sum(row.get("num_trainable") or 0 for row in rows)
    share = trained / max(1, sum(row["num_parameters"] for row in rows))
    train, val = history.of_train(history.metric)[-1], history.of_val(history.metric)[-1]
    is_head_only = sum(bool(row["trainable"]) for row in rows) == 1
    adapters = any(row["mode"] == "lora" for row in rows)
    if adapters or not (is_head_only or share < 0.2) or not np.isfinite(train) or history.metric == "loss":
        return None
    if train > 0.85 or train - val > 2 * max(history.noise, 0.01):
        return None
    return Finding(
        "frozen_too_much",
        0.7,
        "too much is frozen",
        (
            f"{share:.1%} of the parameters train",
            f"{history.metric} of the training images themselves is {train:.3f}, of val {val:.3f}: it underfits",
        ),
        "unfreeze in stages: the head first, then from a tenth of the run on all at a tenth of the rate",
        "1.19, 4.09",
        {"share": share, "train": float(train), "val": float(val)},
        {"adapt.freeze": [], "adapt.unfreeze": _unfreezing(history)},
    )


def _unfreezing(history: History) -> str:
    epochs = history.setting("train.epochs", 10)
    return f"0:head,{max(1, epochs // 10)}:all@{history.setting('optim.lr') / 10:g}"


def norms(history: History) -> Finding | None:
    """BatchNorm takes its statistics from batches of a few images (rows 3C, 4.14)."""
    if history.run is None:
        return None
    live = [row["name"] for row in history.run.plan["rows"] if row["norms"] == "train"]
    batch = history.setting("data.batch_size", 32)
    if not live or batch > _SMALL_BATCH:
        return None
    told = [f"{batch} images at once, and live norms in {', '.join(live)}"]
    train = history.of_train("loss")
    running = history.means[-1][1] if history.means else math.nan
    far = len(train) > 0 and np.isfinite(train[-1]) and math.isfinite(running)
    if far:
        told.append(
            f"loss of training images {running:.3g} with the statistics of their batches, {train[-1]:.3g} with the"
            " running ones"
        )
    if batch > _TINY_BATCH and not (far and abs(train[-1] - running) > 0.3 * running):
        return None
    return Finding(
        "norms",
        0.9 if batch <= _TINY_BATCH else 0.72,
        f"batches of {batch} are too small for live BatchNorm",
        tuple(told),
        "16 images or more at once (--accumulate does not help norms), or where memory forbids it --freeze-bn with"
        " weights whose statistics fit",
        "3C, 4.14",
        {"batch_size": batch, "live": live},
        {"data.batch_size": 32, "optim.accumulate": 1},
    )


def too_regularised(history: History) -> Finding | None:
    """Dropout, or mixing and augmentation, keep the model from learning its training images (3G)."""
    if history.run is None or not history.means or not len(history.validations):
        return None
    dropout = history.setting("model.dropout") or 0.0
    train = history.of_train("loss")[-1]
    running = history.means[-1][1]
    ratio = running / train if np.isfinite(train) and train > 0 else math.nan
    # A loss with smoothed or mixed targets has another floor, and is not compared.
    is_plain = not any(history.setting(f"data.{name}") for name in ("mixup", "cutmix"))
    is_plain = is_plain and not history.setting("task.label_smoothing")
    score = history.of_train(history.metric)[-1]
    strong = dropout >= _MUCH_DROPOUT
    if not strong and not (is_plain and ratio > 2.5 and history.metric != "loss" and score < 0.8):
        return None
    told = [f"dropout {dropout:g}"] if strong else []
    if is_plain and np.isfinite(ratio):
        told.append(
            f"loss of training images {running:.3g} while dropout and augmentation act, {train:.3g} without them"
        )
    return Finding(
        "too_regularised",
        0.88 if strong else 0.71,
        "it is regularised too strongly",
        tuple(told),
        "dropout .2 (rows 1.10 and 2.06 have .15 to .3), less augmentation; a small gap is no merit of its own",
        "1.10, 2.06, 3G",
        {"dropout": dropout, "running": running, "measured": float(train)},
        {"model.dropout": 0.2} if strong else {"data.augment": "light"},
    )
