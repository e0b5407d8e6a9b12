"""`runs` and `show` from nothing but files: finished, in progress, damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from warmstart.analysis import summary
from warmstart.errors import UserError
from warmstart.run import layout, writer

RESOLVED = {
    "format": layout.FORMAT_VERSION,
    "created": "2026-01-02T00:00:00+00:00",
    "origins": {"optim.lr": "flag"},
    "lr": 0.001,
    "original_lr": None,
    "parent": None,
    "task": "classification",
    "model": {
        "name": "builtin:fashion_cnn",
        "source": {"kind": "file", "path": "start.pt"},
        "head": {"kind": "kept", "reason": "the same classes"},
    },
    "data": {
        "path": "images",
        "classes": ["a", "b"],
        "counts": {"train": {"a": 3, "b": 5}, "val": {"a": 1, "b": 1}},
        "sizes": {"train": 8, "val": 2},
        "notes": [],
        "quarantined": [["bad.png", "truncated"]],
    },
    "augment": {"settings": {"rotation": 10}, "origin": "light, the default"},
    "pace": {"total_steps": 20, "steps_per_epoch": 4},
}
PLAN = {
    "rows": [
        {"name": "conv1", "mode": "frozen", "lr": 0.0, "trainable": False, "norms": "eval", "from_step": 0},
        {"name": "head", "mode": "full", "lr": 0.001, "trainable": True, "norms": "-", "from_step": 0},
    ]
}


@pytest.fixture
def write_run(tmp_path: Path):
    """A run with start and, if `num_evals` is 2, a best; written by the writer, without any training."""

    def write(name: str, num_evals: int = 2, **changes: Any) -> Path:
        run = writer.create_run(tmp_path / "runs" / name)
        writer.write_text(run / layout.CONFIG, "optim: {lr: 0.001}\n")
        writer.write_json(run / layout.PLAN, {"rows": [row | {"num_parameters": 10} for row in PLAN["rows"]]})
        writer.write_json(run / layout.RESOLVED, RESOLVED | changes)
        for step, accuracy in ((0, 0.5), (8, 0.75))[:num_evals]:
            writer.append_row(run / layout.METRICS, {"step": step, "loss": 0.3})
            for split in ("train", "val"):
                row = {"step": step, "split": split, "accuracy": accuracy, "loss": 0.4, "f1": 0.6}
                writer.append_row(run / layout.EVALS, row)
            writer.write_checkpoint(run, step, {layout.MODEL: b"x"})
            writer.mark_best(run, step)
        return run

    return write


def test_one_row_per_run_oldest_first(write_run):
    run = write_run("younger", created="2026-03-01T00:00:00+00:00")
    write_run("elder", num_evals=1)
    writer.write_status(run, "finished", step=8)
    rows = summary.list_runs(str(run.parent))
    assert [Path(row["run"]).name for row in rows] == ["elder", "younger"]
    assert rows[0] | {"run": ""} == {
        "run": "",
        "created": "2026-01-02T00:00:00+00:00",
        "state": "unknown",
        "model": "builtin:fashion_cnn",
        "data": "images",
        "steps": "0/20",
        "lr": 0.001,
        "combined": None,
        "miou": None,
        "best_step": 0,
        "accuracy": 0.5,
        "map": None,
        "f1": 0.6,
        "loss": 0.4,
        "parent": None,
    }
    assert (rows[1]["state"], rows[1]["steps"], rows[1]["accuracy"]) == ("finished", "8/20", 0.75)
    text = summary.runs_text(rows)
    assert " ".join(text.split("\n")[0].split()) == "run state model data steps lr best_step accuracy f1 loss"
    assert len(text.split("\n")) == 3


def test_a_run_before_its_first_evaluation(write_run):
    run = write_run("new", num_evals=0)
    (row,) = summary.list_runs(str(run.parent))
    assert (row["steps"], row["best_step"], row["accuracy"]) == ("0/20", None, None)
    info = summary.describe_run(str(run))
    assert (info["start"], info["best"], info["num_evaluations"]) == ({}, {"step": None}, 0)
    assert "checkpoints []" in summary.show_text(info)


def test_a_damaged_run_does_not_hide_the_others(write_run):
    run = write_run("whole")
    (write_run("broken") / layout.RESOLVED).write_bytes(b"{")
    write_run("future", format=99)
    rows = {Path(row["run"]).name: row for row in summary.list_runs(str(run.parent))}
    assert rows["whole"]["accuracy"] == 0.75
    assert rows["broken"]["state"].startswith("unreadable: ")
    assert "has the run format 99" in rows["future"]["state"]
    assert rows["broken"].keys() == rows["whole"].keys()
    assert "whole" in summary.runs_text(list(rows.values()))


def test_no_runs():
    assert summary.runs_text([]) == "no runs here yet"


def test_what_show_tells(write_run):
    run = write_run("one")
    writer.write_status(run, "finished", step=8, stop_reason="no gain for 3 validations")
    with (run / layout.EVALS).open("ab") as file:
        file.write(b'{"step": 9, "spl')
    info = summary.describe_run(str(run))
    assert info["start"]["val"]["accuracy"] == 0.5
    assert (info["best"]["step"], info["best"]["val"]["accuracy"]) == (8, 0.75)
    assert (info["num_evaluations"], info["checkpoints"], info["num_damaged_rows"]) == (2, [0, 8], 1)
    assert (info["num_quarantined"], info["lr_rule"]) == (1, None)
    text = summary.show_text(info)
    for line in (
        f"{run}: finished (no gain for 3 validations)",
        "model  builtin:fashion_cnn from start.pt; head kept (the same classes)",
        "data   images: train 8, val 2; 1 unreadable",
        "steps  20 (4 per epoch); checkpoints [0, 8]",
        "1 damaged rows were skipped",
    ):
        assert line in text.split("\n")
    cells = [line.split() for line in text.split("\n")]
    assert ["val", "accuracy", "0.5", "0.75"] in cells
    assert ["conv1", "frozen", "-", "eval", "0", "10", "?"] in cells


def test_the_document_s_rule_for_the_rate(write_run):
    """0.16: the original was trained with 0.04, so 0.0004 to 0.0008."""
    info = summary.describe_run(
        str(write_run("child", original_lr=0.04, parent={"run": "runs/a", "step": 3, "lr": 0.001}))
    )
    assert info["lr_rule"] == pytest.approx({"original_lr": 0.04, "low": 0.0004, "high": 0.0008, "lr": 0.001})
    assert "training had 0.04, of which document 000 advises 1/100 to 1/50: 0.0004 to 0.0008" in (
        summary.show_text(info)
    )


def test_files_that_are_there(write_run):
    run = write_run("one")
    (run / layout.CURVES).touch()
    assert summary.run_files(str(run)) == [
        str(run / name) for name in (layout.CURVES, layout.PLAN, layout.RESOLVED)
    ]


def test_a_row_without_its_plan(write_run):
    run = write_run("one")
    (run / layout.PLAN).unlink()
    with pytest.raises(UserError, match=r"cannot read .*plan\.json"):
        summary.describe_run(str(run))
