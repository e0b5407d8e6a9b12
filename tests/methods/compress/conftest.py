"""What tests of compression share: a small trained run, and latencies that are measured as briefly as they can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmstart import api


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Latency is measured for the least number of rounds only."""
    monkeypatch.setattr("warmstart.methods.compress.cost._SECONDS", 0.0)


@pytest.fixture(scope="session")
def original(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a small convolutional network on 16 px; tests leave it as it is."""
    return api.finetune(
        "builtin:fashion_cnn",
        overlapping,
        weights="none",
        epochs=12,
        output_dir=str(tmp_path_factory.mktemp("compress") / "run"),
        image_size="16",
        batch_size=8,
        train_ratio=0.6,
        val_ratio=0.2,
        lr=0.003,
        min_lr=0.001,
        workers=0,
        device="cpu",
        tensorboard=False,
        pictures=False,
    ).run
