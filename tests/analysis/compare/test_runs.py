"""Several runs: one table, the best first, and their curves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.verbs.looking import compare

TARGETS = np.arange(6) % 3
RIGHT = np.full(6, True)


def test_one_row_per_run_the_best_first(write_run, tmp_path):
    names = [
        str(write_run(name, RIGHT, TARGETS, values, lr=lr))
        for name, values, lr in (
            ("a", (0.5, 0.7), 1e-3),
            ("b", (0.5, 0.9, 0.8), 1e-4),
            ("c", (0.4, 0.6), 1e-2),
        )
    ]
    found = compare(names, output_dir=str(tmp_path / "out"))
    assert [row["experiment"] for row in found.rows] == ["b", "a", "c"]
    best = found.rows[0]
    assert (best["best"], best["final"], best["epochs to best"], best["rate"]) == (0.9, 0.8, 2.0, 1e-4)
    assert best["gap"] == pytest.approx(0.1) and best["method"] == "head"
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000
    assert "best of 3 on val: b, accuracy 0.9000" in found.text()
    assert json.loads((tmp_path / "out" / layout.COMPARISON).read_text())["question"] == "runs"
    # Whoever then asks val about two of them has had three chances.
    looks = json.loads((tmp_path / "runs" / layout.LOOKS).read_text())
    assert looks["data"]["f0"]["val"]["largest_table"] == 3


def test_many_curves_are_drawn_and_only_ten_named(write_run, tmp_path):
    names = [str(write_run(f"r{n}", RIGHT, TARGETS, (0.5, 0.6 + n / 100))) for n in range(12)]
    assert main(["compare", *names, "--output-dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "curves.png").is_file()


def test_runs_that_are_not_of_one_kind_are_refused(write_run, tmp_path):
    a, b = (str(write_run(name, RIGHT, TARGETS)) for name in "ab")
    masks = str(write_run("m", RIGHT, TARGETS, task="segmentation"))
    with pytest.raises(UserError, match=r"is classification, .* is segmentation"):
        compare([a, b, masks])
    data = {"path": "x", "classes": ["ant", "dog"], "sizes": {"val": 2}, "fingerprint": "f1"}
    with pytest.raises(UserError, match="different classes: bee, cat, dog"):
        compare([a, b, str(write_run("d", RIGHT, TARGETS, data=data))])
    with pytest.raises(UserError, match="--require with 3 runs"):
        compare([a, b, a], require="f1 better")
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="no run, and so without rows"):
        compare([a, b, str(tmp_path / "weights.pt")])
