"""Pages of models that were made: a compression of a blend is a compression, and says on what it was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import warmstart as ws
from warmstart.run import layout, writer


@pytest.fixture
def compressed_blend(small_run: Path, tmp_path: Path) -> Path:
    """By the records that `compress` writes, beside the record of the blend that it was made of."""
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    resolved = json.loads((run / layout.RESOLVED).read_text())
    resolved["model"]["source"] = {"kind": "compress", "path": "blend", "sha256": None}
    resolved["compress"] = {"method": "prune", "told": "half of the channels"}
    point = {"name": "0", "val": 1.0, "retained": None}
    resolved["blend"] = {"metric": "accuracy", "chosen": "0", "points": [point], "changes": []}
    resolved["blend"] |= {"start": None, "tuned": "a", "rule": "val"}
    writer.write_json(run / layout.RESOLVED, resolved)
    change = {
        "metric": "accuracy",
        "difference": -0.1,
        "low": -0.3,
        "high": 0.1,
        "fixed": 1,
        "broken": 2,
        "p": 1.0,
    }
    cost = {"num_parameters": 100, "num_bytes": 400, "macs": 1000, "latency": None}
    points = [
        {"name": name, "metric": "accuracy", "metrics": {"accuracy": value}, "cost": cost, "change": paired}
        for name, value, paired in (("original", 0.9, None), ("01", 0.8, change))
    ]
    writer.write_json(run / layout.COMPRESSION, {"points": points, "test": change, "chosen": "01"})
    return run


def test_a_compression_of_a_blend_is_a_compression(compressed_blend: Path) -> None:
    found = ws.report(str(compressed_blend))
    page = Path(found.path).read_text(encoding="utf-8")
    assert "accuracy 0.900 → 0.800 on val" in found.verdict
    assert "A blend" not in page and 'id="compression"' in page


def test_it_was_trained_perhaps_and_measured_on_so_many(compressed_blend: Path) -> None:
    sizes = json.loads((compressed_blend / layout.RESOLVED).read_text())["data"]["sizes"]
    page = Path(ws.report(str(compressed_blend)).path).read_text(encoding="utf-8")
    assert "not trained" not in page and "Made smaller" in page
    assert f"Cannot be told from the original (test, {sizes['test']} images)." in page
