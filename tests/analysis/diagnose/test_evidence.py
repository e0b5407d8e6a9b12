"""Copies of val images in train, and the answers of the best step."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image

from warmstart.analysis.diagnose.evidence import answers_of, divided_source, find_copies
from warmstart.data.sources import open_source
from warmstart.run import layout
from warmstart.run.reader import Run


def write_folders(root, copies):
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 4)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    for index in range(copies):
        shutil.copy(root / "val" / "bee" / f"{index}.png", root / "train" / "ant" / f"again {index}.png")


def test_copies_are_found_by_their_bytes(tmp_path):
    write_folders(tmp_path, copies=2)
    found = find_copies(open_source(tmp_path))
    assert found is not None and (found.num, found.num_val) == (2, 8)
    assert "val/bee/0.png = train/ant/again 0.png" in found.pairs[0]


def test_no_copies(tmp_path):
    write_folders(tmp_path, copies=0)
    found = find_copies(open_source(tmp_path))
    assert found is not None and found.num == 0


def test_the_runs_own_division_is_used(diagnosed_run):
    run = Run(diagnosed_run)
    source = divided_source(run)
    assert source is not None
    sizes = {split: len(samples) for split, samples in source.splits.items()}
    assert sizes == run.resolved["data"]["sizes"]


def test_data_that_are_gone_are_no_error(changed):
    def gone(resolved):
        resolved["data"]["path"] = "/nowhere/at/all"

    assert divided_source(Run(changed(resolved=gone))) is None


def test_answers_are_those_of_the_best_step(diagnosed_run):
    run = Run(diagnosed_run)
    found = answers_of(run)
    assert found is not None
    row = next(r for r in run.evals.rows if r["split"] == "val" and r["step"] == run.pointer(layout.BEST))
    assert (found.scores.argmax(axis=1) == found.targets).mean() == row["accuracy"]
