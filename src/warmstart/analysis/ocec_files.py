"""A run in the file habits of document 001's program, for whoever reads those: RUN/ocec, where asked for.

The weights in each file are those that were measured for its name: the averaged ones where --ema is on. The second
class is the positive one. Shapes: N samples.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.analysis.plots import plot_confusion
from warmstart.analysis.roc_plot import plot_roc
from warmstart.analysis.samples import open_evaluation_set
from warmstart.config.ocec import PROGRAM, is_ocec, shape_of
from warmstart.console import log
from warmstart.inference.restore import Restored, restore
from warmstart.models.builtin.ocec_files import margin_to
from warmstart.records import finite
from warmstart.run import layout, reader, writer
from warmstart.run.reader import Run
from warmstart.tasks.metrics import confusion

_DROPOUT = 0.3  # of the model, where --dropout does not say another


@dataclass(frozen=True)
class _Measured:
    """One split by one checkpoint: `logits` (N,) of the second class against the first."""

    ids: tuple[str, ...]
    labels: np.ndarray  # int64 (N,)
    logits: np.ndarray
    metrics: dict[str, float]

    @property
    def scores(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.logits.astype(np.float64)))


def write_ocec_files(path: Path, device: torch.device) -> None:
    """A file per checkpoint that is kept, history.json, summary.json, test_predictions.csv and pictures."""
    run = reader.open_run(path)
    folder = run.path / layout.OCEC
    folder.mkdir(exist_ok=True)
    best, best_file, found = run.pointer(layout.BEST), None, None
    last = {_epoch(run, step): step for step in run.checkpoint_steps()}  # it has the epoch's own file name
    for step in run.checkpoint_steps():
        at = f"{_epoch(run, step):04d}" + ("" if last[_epoch(run, step)] == step else f"_step{step}")
        restored = restore(f"{run.path}@{step}", device, merged=True)
        measured = {split: _measure(run, restored, split) for split in _splits(run) if split != "test"}
        content = _content(run, restored, step, measured)
        _write(folder / f"ocec_epoch_{at}.pt", content)
        if step == best:
            f1 = measured.get("val", measured["train"]).metrics["f1"]
            best_file = folder / f"ocec_best_epoch{_epoch(run, step):04d}_f1_{f1:.4f}.pt"
            _write(best_file, content | _best_of(content))
            measured |= {"test": _measure(run, restored, "test")} if "test" in _splits(run) else {}
            found = content | _best_of(content) | {"test": measured.get("test")}
        _draw(folder, measured, restored.built.classes, at)
    writer.write_json(folder / "history.json", finite(_history(run)))
    writer.write_json(folder / "summary.json", finite(_summary(run, folder, best_file, found)))
    if found is not None and found["test"] is not None:
        writer.write_text(folder / "test_predictions.csv", _predictions(found["test"]))
    log.info("files as document 001 has them: %s", folder)


def _splits(run: Run) -> list[str]:
    return [split for split in ("train", "val", "test") if run.resolved["data"]["sizes"].get(split)]


def _epoch(run: Run, step: int) -> int:
    """Epochs begun: that program counts its epochs from 1 and saves at their ends."""
    return math.ceil(step / run.resolved["pace"]["steps_per_epoch"])


def _measure(run: Run, restored: Restored, split: str) -> _Measured:
    chosen = open_evaluation_set(run, None, split, restored.built)
    outputs = restored.outputs(chosen.samples)
    metrics = restored.task.evaluate(outputs, chosen.targets)
    matrix = confusion(chosen.targets, outputs.argmax(axis=1), len(restored.built.classes))
    right, found, have = (float(n) for n in (matrix[1, 1], matrix[:, 1].sum(), matrix[1].sum()))
    values = {
        "loss": metrics["loss"],
        "accuracy": metrics["accuracy"],
        "precision": right / found if found else 0.0,
        "recall": right / have if have else 0.0,
        "f1": 2 * right / (found + have) if found + have else 0.0,
    }
    return _Measured(chosen.ids, chosen.targets, outputs[:, 1] - outputs[:, 0], values)


def _content(run: Run, restored: Restored, step: int, measured: dict[str, _Measured]) -> dict[str, Any]:
    """What that program saves; without the state of the optimizer, which lies in the run's own checkpoint."""
    built, config = restored.built, run.config
    used = built.preprocessing
    bare = built.name.removeprefix("builtin:")
    dropout = config["model"]["dropout"]
    model_config: dict[str, Any] = {"name": built.name}
    if is_ocec(bare):
        shape = shape_of(bare)
        model_config = {
            "base_channels": shape.base_channels,
            "num_blocks": shape.num_blocks,
            "dropout": 0.0 if shape.undropped else _DROPOUT if dropout is None else dropout,
            "arch_variant": shape.arch_variant,
            "expansion": shape.expansion,
            "se_reduction": shape.se_reduction,
            "head_variant": shape.head,
            "token_mixer_grid": shape.token_mixer_grid,
            "token_mixer_layers": shape.token_mixer_layers,
        }
    train = {"epochs": config["train"]["epochs"], "seed": config["train"]["seed"]}
    train |= {name: config["optim"][name] for name in ("lr", "weight_decay")}
    train |= margin_to(built.margin)
    train |= {"class_weights": config["task"]["class_weights"], "program": PROGRAM}
    train["settings"] = {f"optim.{name}": value for name, value in config["optim"].items()}
    train["settings"] |= {"train.select_by": run.resolved["select_by"]}
    train |= {"batch_size": config["data"]["batch_size"], "image_size": list(used.image_size)}
    return {
        "model_config": model_config,
        "train_config": train,
        "normalization": {
            "mean": list(used.mean),
            "std": list(used.std),
            "image_size": list(used.image_size),
        },
        "label_map": dict(enumerate(built.classes)),
        "amp_enabled": run.resolved["precision"] != "float32",
        "tensorboard_logdir": str(run.path / layout.TENSORBOARD),
        "epoch": _epoch(run, step),
        "model_state": {name: tensor.cpu() for name, tensor in built.module.state_dict().items()},
        "optimizer_state": None,
        "scheduler_state": None,
        "scaler_state": None,
        "train_metrics": measured["train"].metrics,
        "val_metrics": measured["val"].metrics if "val" in measured else None,
    }


def _best_of(content: dict[str, Any]) -> dict[str, Any]:
    metrics = content["val_metrics"] or content["train_metrics"]
    return {
        "best_val_loss": metrics["loss"],
        "best_epoch": content["epoch"],
        "best_accuracy": metrics["accuracy"],
        "best_f1": metrics["f1"],
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    data = io.BytesIO()
    torch.save(content, data)
    writer.write_whole(path, data.getvalue())


def _history(run: Run) -> list[dict[str, Any]]:
    """A row per validation, of the run's own rows; its f1 is the mean over both classes and is called so."""
    rows = [row for row in run.evals.rows if row.get("kind") is None]
    rates = [(row["step"], row["lr"]) for row in run.metrics.rows if row.get("lr") is not None]
    history = []
    for step in sorted({row["step"] for row in rows}):
        at = {row["split"]: row for row in rows if row["step"] == step}
        entry: dict[str, Any] = {"epoch": step / run.resolved["pace"]["steps_per_epoch"], "step": step}
        for split in ("train", "val"):
            row = at.get(split, {})
            entry[split] = {
                "loss": row.get("loss"),
                "accuracy": row.get("accuracy"),
                "f1_macro": row.get("f1"),
            }
        entry["lr"] = next((lr for known, lr in reversed(rates) if known <= step), None)
        history.append(entry)
    return history


def _summary(run: Run, folder: Path, file: Path | None, found: dict[str, Any] | None) -> dict[str, Any]:
    names = (
        "best_epoch",
        "best_accuracy",
        "best_f1",
        "best_val_loss",
        "val_metrics",
        "train_metrics",
        "amp_enabled",
    )
    test = None if found is None else found["test"]
    return {
        "checkpoint": None if file is None else str(file),
        **{name: None if found is None else found[name] for name in names},
        "resume_from": run.config["model"]["weights"],
        "history_path": str(folder / "history.json"),
        "test_metrics": None if test is None else test.metrics,
        "tensorboard_logdir": str(run.path / layout.TENSORBOARD),
    }


def _predictions(test: _Measured) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("path", "label", "logit", "prob_open"))
    columns = zip(test.ids, test.labels.tolist(), test.logits.tolist(), test.scores.tolist(), strict=True)
    rows.writerows((name, label, repr(logit), repr(score)) for name, label, logit, score in columns)
    return text.getvalue()


def _draw(folder: Path, measured: dict[str, _Measured], classes: tuple[str, ...], at: str) -> None:
    for split, found in measured.items():
        place = folder / "diagnostics" / split
        place.mkdir(parents=True, exist_ok=True)
        matrix = confusion(found.labels, (found.logits > 0).astype(np.int64), len(classes))
        plot_confusion(matrix, classes, place / f"confusion_{split}_epoch{at}.png")
        plot_roc(found.labels == 1, found.scores, classes[1], place / f"roc_{split}_epoch{at}.png")
