"""Histories made of curves, and a small finished run whose files a test may change in a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import warmstart as ws
from warmstart.analysis.diagnose.history import History, TrainRow, Validation


def make_history(
    val: Sequence[float],
    losses: Sequence[float] | None = None,
    train_losses: Sequence[float] | None = None,
    *,
    rates: Sequence[float] = (),
    start: dict[str, float] | None = None,
    num: int = 400,
    **values: Any,
) -> History:
    """A validation per epoch, of `num` images; accuracy `val`, their loss and that of training images."""
    losses = [1 - value for value in val] if losses is None else losses
    train_losses = losses if train_losses is None else train_losses
    rows = zip(val, losses, train_losses, strict=True)
    points = [
        Validation(
            10 * epoch,
            epoch,
            {"accuracy": v, "loss": a, "num_samples": num},
            {"accuracy": v + 0.02, "loss": b},
        )
        for epoch, (v, a, b) in enumerate(rows, 1)
    ]
    return History(
        name="curves",
        program="a test",
        metric="accuracy",
        start=None if start is None else Validation(0, 0, start, {}),
        validations=tuple(points),
        rows=tuple(TrainRow(n + 1, (n + 1) / 10, None, rate) for n, rate in enumerate(rates)),
        means=tuple((float(epoch), loss) for epoch, loss in enumerate(train_losses, 1)),
        **values,
    )


@pytest.fixture(scope="session")
def curves() -> Callable[..., History]:
    return make_history


@pytest.fixture(scope="session")
def diagnosed_run(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs over three classes."""
    run = tmp_path_factory.mktemp("diagnosed") / "run"
    ws.finetune(
        data=str(overlapping),
        model="builtin:fashion_cnn",
        weights="none",
        image_size="16",
        batch_size=8,
        train_ratio=0.6,
        val_ratio=0.25,
        epochs=3,
        workers=0,
        device="cpu",
        tensorboard=False,
        pictures=False,
        output_dir=str(run),
    )
    return run


@pytest.fixture
def changed(diagnosed_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run in which JSON files say something else: `changed(resolved=function, ...)`."""

    def change(**files: Callable[[Any], None]) -> Path:
        target = tmp_path / "changed"
        shutil.copytree(diagnosed_run, target)
        for name, function in files.items():
            path = target / f"{name}.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            function(content)
            path.write_text(json.dumps(content), encoding="utf-8")
        return target

    return change
