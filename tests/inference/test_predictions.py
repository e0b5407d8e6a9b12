"""Predictions by id survive their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions, write_predictions


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    scores[2] = np.nan
    ids = ("train/猫/1.png", "b, c.png", "d.png", "e.png")
    path = tmp_path / "val@0.parquet"
    path.write_bytes(write_predictions(ids, np.array([0, 2, -1, 1]), scores, ("ant", "bee, big", "猫")))
    result = read_predictions(path)
    assert result.ids == ids and result.classes == ("ant", "bee, big", "猫")
    assert result.targets.tolist() == [0, 2, -1, 1]
    assert np.array_equal(result.scores, scores, equal_nan=True) and result.scores.dtype == np.float32


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read predictions from .*none\.parquet"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match=r"text\.parquet.*\nExpected: a file written by warmstart"):
        read_predictions(tmp_path / "text.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet"):
        read_predictions(tmp_path / "other.parquet")


def test_sets_come_back_as_they_were(tmp_path: Path) -> None:
    targets = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=np.uint8)
    path = tmp_path / "val@0.parquet"
    path.write_bytes(write_predictions("abc", targets, np.zeros((3, 3), np.float32), ("x", "y", "z")))
    result = read_predictions(path)
    assert result.targets.dtype == np.uint8 and result.targets.tolist() == targets.tolist()
    import pyarrow.parquet as pq

    assert pq.read_table(path)["target"].to_pylist() == [[0, 2], [], [0, 1, 2]]
