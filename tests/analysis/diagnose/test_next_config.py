"""The settings that a diagnosis writes, and the table of data beside them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from warmstart.analysis.diagnose.findings import Diagnosis, Finding
from warmstart.analysis.diagnose.next_config import write_next
from warmstart.analysis.diagnose.next_data import write_table
from warmstart.config.io import load
from warmstart.data.sources import open_source
from warmstart.errors import UserError
from warmstart.run.reader import Run


def diagnosis_of(*findings):
    return Diagnosis("run", "warmstart", "finished", findings, 20)


def finding(score=0.9, on=False, data=None, **changes):
    return Finding("some_cause", score, "a cause", ("told",), "do this", changes=changes, on=on, data=data)


def test_finetune_gets_all_settings_and_the_changes_with_their_reasons(diagnosed_run, tmp_path):
    target = tmp_path / "next.yaml"
    first, second = finding(**{"optim.lr": 1e-4}), finding(0.8, **{"optim.lr": 5.0, "train.patience": 7})
    symptom = finding(0.5, **{"train.epochs": 99})
    written = write_next(Run(diagnosed_run), diagnosis_of(first, second, symptom), str(target))
    config = load({}, str(target)).config
    assert (config.optim.lr, config.train.patience, config.train.epochs) == (1e-4, 7, 3)
    assert config.data.path == Run(diagnosed_run).resolved["data"]["path"]
    assert (config.model.name, config.model.weights) == ("builtin:fashion_cnn", "none")
    assert config.output.output_dir is None and config.output.pictures is False
    assert "  # some_cause: a cause\n  lr: 0.0001\n" in target.read_text(encoding="utf-8")
    assert written.command == ("warmstart", "finetune", "--config", str(target))


def test_continue_gets_the_changes_alone(diagnosed_run, tmp_path):
    target = tmp_path / "next.yaml"
    written = write_next(
        Run(diagnosed_run), diagnosis_of(finding(on=True, **{"train.patience": 10})), str(target)
    )
    assert written.command[:3] == ("warmstart", "continue", str(diagnosed_run))
    lines = [line for line in target.read_text(encoding="utf-8").splitlines() if "#" not in line]
    assert lines == ["train:", "  patience: 10"]


def test_nothing_to_write(diagnosed_run, tmp_path):
    for findings in ((), (finding(),)):
        with pytest.raises(UserError, match="nothing to write"):
            write_next(Run(diagnosed_run), diagnosis_of(*findings), str(tmp_path / "next.yaml"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ordered(tmp_path):
    """Val has most of class bee, and two of its pictures are in train as well."""
    rng = np.random.default_rng(0)
    for split, counts in (
        ("train", {"ant": 9, "bee": 1}),
        ("val", {"ant": 1, "bee": 6}),
        ("test", {"ant": 2, "bee": 2}),
    ):
        for name, number in counts.items():
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.png")
    for index in range(2):
        copy = tmp_path / "data" / "train" / "bee" / f"copy {index}.png"
        copy.write_bytes((tmp_path / "data" / "val" / "bee" / f"{index}.png").read_bytes())
    return open_source(tmp_path / "data")


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_copies_are_left_out_of_the_training(ordered, tmp_path):
    path = write_table(ordered, {"drop copies"}, tmp_path / "next.csv", 0)
    rows = rows_of(path)
    assert len(rows) == 9 + 1 + 7 + 4
    assert not [row for row in rows if "copy" in row["path"]]
    assert {row["split"] for row in rows if "/val/" in row["path"]} == {"val"}


def test_a_new_division_is_by_class_and_leaves_test_alone(ordered, tmp_path):
    path = write_table(ordered, {"divide"}, tmp_path / "next.csv", 0)
    rows = rows_of(path)
    for name in ("ant", "bee"):
        assert {row["split"] for row in rows if row["label"] == name} == {"train", "val", "test"}
    assert all((row["split"] == "test") == ("/test/" in row["path"]) for row in rows)
    again = open_source(path)
    assert {split: len(samples) for split, samples in again.splits.items()} == {
        "train": 12,
        "val": 7,
        "test": 4,
    }


def test_images_in_no_files_have_no_table(ordered, tmp_path, shared):
    source = open_source(shared / "data" / "fashion900")
    assert write_table(source, {"divide"}, tmp_path / "next.csv", 0) is None
