"""The last row of a file, as reading all of it would give it; and YAML as PyYAML reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from warmstart.run.rows import last_row, read_rows
from warmstart.run.yaml_text import parsed

ROWS = [{"kind": "train", "step": step, "loss": "x" * 100} for step in range(1, 1001)]


def written(path: Path, rows: list[dict[str, object]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "more, end",
    [
        ([], ""),
        ([], '{"kind": "train", "st'),  # torn
        ([{"kind": "rescue", "step": 990}], ""),
        ([{"kind": "resume", "step": 300}], ""),  # which takes back more than the end of the file holds
        ([{"kind": "resume", "step": 300}, {"kind": "train", "step": 301}], "\n\n"),
    ],
)
def test_the_last_row_is_that_of_the_whole_file(tmp_path, more, end):
    path = written(tmp_path / "metrics.jsonl", ROWS + more, end)
    assert path.stat().st_size > 100_000
    assert last_row(path) == read_rows(path).rows[-1]


def test_no_row_at_all(tmp_path):
    assert last_row(tmp_path / "none.jsonl") is None
    assert last_row(written(tmp_path / "empty.jsonl", [])) is None
    assert last_row(written(tmp_path / "torn.jsonl", [], '{"step"')) is None


def test_words_mean_what_they_mean_to_pyyaml():
    text = """
a: {x: 1, y: 1.5e-3, z: 4e-4, u: null, v: ~, w: yes, t: "1", s: 1_000, r: 0x1f, q: 2026-01-02, p: .nan}
b: [off, On, TRUE, '', 12:30:45, -.inf, +1, 010]
1: &anchor two
c: *anchor
"""
    assert repr(parsed(text)) == repr(yaml.safe_load(text))
    with pytest.raises(ValueError, match="while parsing"):
        parsed("a: [")
