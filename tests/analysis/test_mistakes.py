"""The images to look at, on a run whose val holds two wrong labels."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import warmstart as ws


def test_wrong_labels_are_listed_first_and_drawn(
    small_run: Path, tmp_path: Path, pictures: Callable[..., None]
) -> None:
    pictures(tmp_path / "data", {"cat": 12, "dog": 12, "owl": 12}, seed=3)
    right = ws.evaluate(str(small_run), str(tmp_path / "data"), output_dir=str(tmp_path / "before"))
    if right.metrics["accuracy"] < 0.9:
        pytest.fail(f"the small run must know its classes, accuracy {right.metrics['accuracy']}")
    for number in (0, 1):
        shutil.move(
            tmp_path / "data" / "cat" / f"{number}.png", tmp_path / "data" / "owl" / f"wrong{number}.png"
        )
    found = ws.evaluate(
        str(small_run), str(tmp_path / "data"), output_dir=str(tmp_path / "out"), pictures=True
    )
    with (tmp_path / "out" / "mislabelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.num_mislabelled and 1 <= len(rows) <= 2
    assert all("wrong" in row["id"] and (row["label"], row["suggested"]) == ("owl", "cat") for row in rows)
    assert f"{len(rows)} images look mislabelled: mislabelled.csv" in found.text()
    with (tmp_path / "out" / "mistakes.csv").open() as file:
        mistakes = list(csv.DictReader(file))
    scores = [float(row["score_of_answer"]) for row in mistakes]
    assert scores == sorted(scores, reverse=True)
    assert len(mistakes) == round((1 - found.metrics["accuracy"]) * found.num_samples)
    for name in ("mistakes.png", "mislabelled.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
