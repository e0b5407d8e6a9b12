"""Runs as their files alone, written by the writer, without any training; and answers of made-up models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warmstart.analysis.compare.answers import Answers
from warmstart.analysis.compare.sides import Side
from warmstart.inference.predictions import write_predictions
from warmstart.run import layout, writer

CLASSES = ("ant", "bee", "cat")


def scores_of(answers: np.ndarray, num_classes: int = 3, sure: float = 0.8) -> np.ndarray:
    """float32 (N, K): `sure` for the answer, the rest equally divided."""
    scores = np.full((len(answers), num_classes), (1 - sure) / (num_classes - 1), dtype=np.float32)
    scores[np.arange(len(answers)), answers] = sure
    return scores


def answers_with(right: np.ndarray, targets: np.ndarray, name: str = "model", **changes: Any) -> Answers:
    """One class per image: the target where `right`, else the next class."""
    given = np.where(right, targets, (targets + 1) % len(CLASSES))
    ids = tuple(f"{number:05}" for number in range(len(targets)))
    values = {"kind": "classification", "classes": CLASSES, "ids": ids, "targets": targets}
    return Answers(Side(name), scores=scores_of(given), **{**values, **changes})


@pytest.fixture
def made() -> Callable[..., Answers]:
    return answers_with


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """A finished run with a start and a best (step 8 of 8), whose answers on test are right where `right` is."""

    def write(
        name: str,
        right: np.ndarray,
        targets: np.ndarray,
        values: tuple[float, ...] = (0.5, 0.75),
        ids: list[str] | None = None,
        **changes: Any,
    ) -> Path:
        run = writer.create_run(tmp_path / "runs" / name)
        writer.write_text(run / layout.CONFIG, "task: {positive: null}\n")
        sizes = {"train": 8, "val": 6, "test": len(targets)}
        resolved = {
            "format": layout.FORMAT_VERSION,
            "seed": 0,
            "task": "classification",
            "select_by": "accuracy",
            "lr": 0.001,
            "parent": None,
            "model": {"name": "builtin:fashion_cnn", "source": {"kind": "file"}, "macs": 2_500_000},
            "data": {"path": "images", "classes": list(CLASSES), "sizes": sizes, "fingerprint": "f0"},
            "pace": {"total_steps": 8, "steps_per_epoch": 4},
        }
        writer.write_json(run / layout.RESOLVED, resolved | changes)
        plan = [
            {"name": "stem", "mode": "frozen", "num_parameters": 90, "num_trainable": 0},
            {"name": "head", "mode": "full", "num_parameters": 10, "num_trainable": 10},
        ]
        writer.write_json(run / layout.PLAN, {"rows": plan})
        for number, value in enumerate(values):
            row = {"step": 8 * number, "epoch": 2.0 * number, "accuracy": value, "loss": 1 - value}
            for split, plus in (("val", 0.0), ("train", 0.1)):
                writer.append_row(run / layout.EVALS, {**row, "split": split, "accuracy": value + plus})
        last = 8 * (len(values) - 1)
        writer.write_checkpoint(run, last, {layout.MODEL: b"x" * 1000})
        writer.mark_best(run, last)
        writer.write_status(run, "finished", step=last, seconds=12.5)
        answers = np.where(right, targets, (targets + 1) % len(CLASSES))
        names = ids or [f"{number:05}" for number in range(len(targets))]
        (run / layout.PREDICTIONS).mkdir(exist_ok=True)
        (run / layout.PREDICTIONS / f"test@{last}.parquet").write_bytes(
            write_predictions(names, targets, scores_of(answers), CLASSES)
        )
        return run

    return write
