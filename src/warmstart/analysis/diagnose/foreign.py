"""Histories of other programs -> the same record: ce7454's and OCEC's history.json, timm's summary.csv, Hugging
Face's trainer_state.json, Lightning's metrics.csv. Only JSON and CSV are read, nothing is executed.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.analysis.diagnose.history import History, TrainRow, Validation
from warmstart.errors import UserError

_FORMS = (
    "a run directory, or another program's history: history.json (ce7454, OCEC), summary.csv (timm),"
    " trainer_state.json (Hugging Face), metrics.csv (Lightning)"
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "eval": "val",
}
_NAMES = {
    **{"acc": "accuracy", "top1": "accuracy", "accuracy": "accuracy", "acc1": "accuracy", "loss": "loss"},
    **{"f1": "f1", "f1_macro": "f1", "f_score": "fscore", "fscore": "fscore", "miou": "miou", "iou": "miou"},
    **{"mean_iou": "miou", "map": "map", "top5": "top5", "balanced_accuracy": "balanced_accuracy"},
}
_ORDER = ("fscore", "miou", "map", "f1", "accuracy", "loss")  # which of its metrics is judged
_RATE = re.compile(r"^(lr|learning_rate)(?:[-_/].*)?$")
_KEY = re.compile(r"^(?:(train|training|val|valid|validation|eval)[_/. -])?(.+?)(_epoch|_step)?$")
_PERCENT = ("accuracy", "top5")

Point = dict[str, Any]  # step, epoch, lr, and `train.NAME` or `val.NAME`


def read_foreign(path: Path) -> History:
    """The history in a file, or in a folder that holds one of these files.

    Raises:
        UserError: no such file, another form, or no numbers in it.
    """
    file = _file(path)
    try:
        text = file.read_text(encoding="utf-8")
        content = None if file.suffix == ".csv" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}", _FORMS) from None
    program, points, damaged = _of_csv(text) if content is None else _of_json(content)
    points = [_plain(point) for point in points]
    names = {name for point in points for name in point}
    metrics = [name for name in _ORDER if f"val.{name}" in names]
    if not points or not (metrics or "train.loss" in names):
        raise UserError(f"{file} holds no losses or metrics by epoch", _FORMS)
    notes = [] if metrics else ["it holds no validations"]
    return _history(file, program, points, (metrics or ["loss"])[0], (damaged, tuple(notes)))


def _file(path: Path) -> Path:
    if path.is_file() and path.suffix in (".json", ".csv"):
        return path
    names = ("history.json", "summary.csv", "trainer_state.json", "metrics.csv")
    for name in names if path.is_dir() else ():
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} is no run and no history", _FORMS, "`warmstart runs FOLDER` lists runs")


def _of_json(content: Any) -> tuple[str, list[Point], int]:
    """Three forms: an object of lists, a list of objects, and Hugging Face's object with `log_history`."""
    if isinstance(content, Mapping) and isinstance(content.get("log_history"), list):
        return "Hugging Face", [_hf_row(row) for row in content["log_history"] if isinstance(row, Mapping)], 0
    if isinstance(content, Mapping):
        content = content.get("history", content)
    if isinstance(content, Mapping):
        columns = {key: values for key, values in content.items() if isinstance(values, list)}
        num = max((len(values) for values in columns.values()), default=0)
        by_epoch = [{key: v[i] for key, v in columns.items() if i < len(v)} for i in range(num)]
        return "ce7454", [{"epoch": i + 1, **row} for i, row in enumerate(by_epoch)], 0
    if isinstance(content, list):
        rows = [row for row in content if isinstance(row, Mapping)]
        return (
            "OCEC",
            [{"epoch": i + 1, **_flat(row)} for i, row in enumerate(rows)],
            len(content) - len(rows),
        )
    return "", [], 0


def _hf_row(row: Mapping[str, Any]) -> Point:
    """`loss` is that of the steps since the row before, `eval_` is val; the last row sums the training up."""
    kept = {key: value for key, value in row.items() if key != "train_loss"}
    return {("train_loss" if key == "loss" else key): value for key, value in kept.items()}


def _flat(row: Mapping[str, Any]) -> Point:
    """{"val": {"loss": 1}} -> {"val_loss": 1}."""
    found: Point = {}
    for key, value in row.items():
        inner = value if isinstance(value, Mapping) else None
        found |= {key: value} if inner is None else {f"{key}_{name}": each for name, each in inner.items()}
    return found


def _of_csv(text: str) -> tuple[str, list[Point], int]:
    """timm has a row per epoch, counted from 0; Lightning rows of the columns that were logged, by step."""
    lines = list(csv.reader(text.splitlines()))
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    whole = [row for row in rows if len(row) == len(header)]
    points: list[Point] = [dict(zip(header, row, strict=True)) for row in whole]
    # Both count from 0, and what is measured at the end of an epoch belongs to its end.
    for point in points:
        epoch = _number(point.get("epoch"))
        if epoch is not None:
            point["epoch"] = epoch + 1
    is_timm = "eval_loss" in header or "eval_top1" in header
    return "timm" if is_timm else "Lightning", points, len(rows) - len(whole)


def _plain(point: Point) -> Point:
    """The names of this house; what is no finite number is left out."""
    found: Point = {}
    for key, value in point.items():
        number, word = _number(value), key.strip().lower()
        if number is None:
            continue
        if word in ("epoch", "step"):
            found[word] = number
            continue
        if _RATE.match(word):
            found.setdefault("lr", number)
            continue
        match = _KEY.match(word)
        name = _NAMES.get(match[2]) if match else None
        if match is None or name is None:
            continue
        split = _SPLITS[match[1] or "train"] if match[1] or name == "loss" else "val"
        if match[3] == "_step" and f"{split}.{name}" in found:
            continue
        found[f"{split}.{name}"] = number / 100 if name in _PERCENT and number > 1.5 else number
    return found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _history(
    file: Path, program: str, points: list[Point], metric: str, rest: tuple[int, tuple[str, ...]]
) -> History:
    """Rows without a step are counted by their epochs; several rows of one step are one (Lightning)."""
    merged: dict[tuple[float, float], Point] = {}
    for number, point in enumerate(points):
        epoch = float(point.get("epoch", number + 1))
        merged.setdefault((float(point.get("step", epoch)), epoch), {}).update(point)
    validations, rows, means = [], [], []
    train: dict[str, float] = {}
    lr: float | None = None
    for (step, epoch), point in sorted(merged.items()):
        lr = point.get("lr", lr)
        of = {
            split: {key.partition(".")[2]: v for key, v in point.items() if key.startswith(f"{split}.")}
            for split in ("train", "val")
        }
        train |= of["train"]
        if "loss" in of["train"]:
            rows.append(TrainRow(int(step), epoch, of["train"]["loss"], lr))
            means.append((epoch, of["train"]["loss"]))
        if of["val"]:
            validations.append(Validation(int(step), epoch, of["val"], dict(train)))
    start = validations[0] if validations and validations[0].step == 0 else None
    told = f"read as {program}'s, which says nothing of settings, data and classes"
    return History(
        name=str(file),
        program=program,
        metric=metric,
        start=start,
        validations=tuple(v for v in validations if v is not start),
        rows=tuple(rows),
        means=tuple(means),
        num_damaged=rest[0],
        notes=(told, *rest[1]),
    )
