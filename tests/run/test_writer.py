"""Whole files appear at once or not at all; a full disk costs nothing that was saved before."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path

import pytest

from warmstart.errors import UserError
from warmstart.run import layout, reader, writer
from warmstart.run.process import birth_of

FILES = {layout.MODEL: b"m" * 1000, layout.STATE_TENSORS: b"s" * 3000, layout.STATE: b"{}"}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_whole_file(tmp_path):
    writer.write_whole(tmp_path / "x", b"old")
    writer.write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    writer.write_whole(tmp_path / "x", b"old")
    full_disk(1)
    with pytest.raises(
        UserError, match=r"cannot write .*/x: No space left on device\nExpected: room for 2\.0 MB"
    ) as e:
        writer.write_whole(tmp_path / "x", b"n" * 2_000_000)
    assert "what was saved before is intact" in str(e.value)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    writer.write_whole(tmp_path / "x", b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot write .*No such file.*\nExpected: an existing folder .*/nowhere"
    ):
        writer.write_text(tmp_path / "nowhere" / "x", "text")


def test_json_holds_no_word_that_json_lacks(tmp_path):
    writer.write_json(tmp_path / "x.json", {"ü": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"ü": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.write_json(tmp_path / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"ü": [1, None]}


def test_rows_are_on_disk_before_the_checkpoint_that_counts_on_them(run, monkeypatch):
    """What a power cut leaves is what was flushed: the rows must be among it where the checkpoint is."""
    flushed: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        flushed.append((found.st_ino, found.st_size))
        real(descriptor)

    paths = [run / layout.METRICS, run / layout.EVALS]
    for path in paths:
        writer.append_row(path, {"step": 1})
    monkeypatch.setattr(os, "fsync", fsync)
    folder = writer.write_checkpoint(run, 1, FILES)
    rows = [(path.stat().st_ino, path.stat().st_size) for path in paths]
    assert flushed[:2] == rows
    assert (folder / layout.MANIFEST).stat().st_ino in {number for number, _ in flushed[2:]}


def test_rows_that_the_disk_refuses_cost_no_checkpoint(with_steps, full_disk):
    writer.append_row(with_steps / layout.METRICS, {"step": 13})
    full_disk(1)
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        writer.write_checkpoint(with_steps, 13, FILES)
    assert reader.Run(with_steps).checkpoint_steps() == [2, 9, 12]


def test_rows_are_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    writer.append_row(path, {"step": 1, "name": "ü"})
    writer.append_row(path, {"step": 2, "bad": [math.nan, math.inf], "deep": {"x": -math.inf}, "y": 0.5})
    first, second, rest = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(first) == {"step": 1, "name": "ü"}
    assert json.loads(second) == {"step": 2, "bad": [None, None], "deep": {"x": None}, "y": 0.5}
    assert rest == ""


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_row_does_not_swallow_the_next(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    for step in (1, 2):
        writer.append_row(path, {"step": step, "loss": 0.5})
    path.write_bytes(path.read_bytes()[:-cut])
    writer.append_row(path, {"step": 3})
    rows = reader.read_rows(path)
    kept = [1, 2, 3] if cut == 1 else [1, 3]  # without its line end alone a row is whole
    assert [row["step"] for row in rows.rows] == kept
    assert rows.num_damaged == 3 - len(kept)


def test_rows_that_cannot_be_appended(tmp_path):
    with pytest.raises(UserError, match=r"cannot append to .*: Is a directory\nExpected: a writable disk"):
        writer.append_row(tmp_path, {"step": 1})


def test_a_run_directory_is_new(tmp_path):
    run = writer.create_run(tmp_path / "a" / "b")
    assert names(run) == [layout.CHECKPOINTS, layout.PREDICTIONS]
    with pytest.raises(
        UserError, match=r"is not empty\n.*\nFix: choose another --output-dir or --name, or `warmstart"
    ):
        writer.create_run(run)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the run directory .*: Not a directory"):
        writer.create_run(tmp_path / "file" / "run")


def test_status(run):
    writer.write_status(run, "failed", step=3, reason="it rained")
    status = json.loads((run / layout.STATUS).read_text())
    assert status == {
        "state": "failed",
        "pid": os.getpid(),
        "host": platform.node(),
        "born": birth_of(os.getpid()),
        "step": 3,
        "reason": "it rained",
    }


def test_a_checkpoint_is_complete_and_named(run):
    folder = writer.write_checkpoint(run, 12, FILES)
    assert names(folder) == sorted([*FILES, layout.MANIFEST])
    assert reader.find_damage(folder) is None
    assert (run / layout.CHECKPOINTS / layout.LAST).read_text() == "step_00000012\n"
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    assert (manifest["step"], manifest["format"]) == (12, layout.FORMAT_VERSION)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        name: len(content) for name, content in FILES.items()
    }


@pytest.mark.parametrize("number", range(1, len(FILES) + 2))
def test_a_disk_that_fills_up_at_any_file(run, full_disk, number):
    """Three files and the MANIFEST: whichever finds the disk full, the checkpoint is absent."""
    writer.write_checkpoint(run, 1, FILES)
    full_disk(number)
    with pytest.raises(UserError, match="No space left on device"):
        writer.write_checkpoint(run, 2, FILES)
    assert names(run / layout.CHECKPOINTS) == [layout.LAST, "step_00000001"]
    assert reader.Run(run).pointer(layout.LAST) == 1
    assert reader.find_damage(reader.Run(run).checkpoint(1)) is None


def test_a_disk_that_fills_up_at_the_pointer(run, full_disk):
    """The checkpoint is complete, and LAST still names the one before."""
    writer.write_checkpoint(run, 1, FILES)
    full_disk(len(FILES) + 2)
    with pytest.raises(UserError, match=r"cannot write .*LAST: No space"):
        writer.write_checkpoint(run, 2, FILES)
    assert reader.Run(run).pointer(layout.LAST) == 1
    assert reader.Run(run).checkpoint_steps() == [1, 2]
    assert reader.find_damage(reader.Run(run).checkpoint(2)) is None


def test_a_folder_that_cannot_be_made_is_an_error_for_users(run):
    (run / layout.CHECKPOINTS).rmdir()
    (run / layout.CHECKPOINTS).touch()
    with pytest.raises(UserError, match=r"cannot write .*step_00000001: Not a directory"):
        writer.write_checkpoint(run, 1, FILES)


def test_what_a_killed_process_left_is_no_obstacle(run):
    half = run / layout.CHECKPOINTS / ".step_00000001.tmp"
    half.mkdir()
    (half / "junk").write_bytes(b"x")
    folder = writer.write_checkpoint(run, 1, FILES)
    assert "junk" not in names(folder)
    assert names(run / layout.CHECKPOINTS) == [layout.LAST, "step_00000001"]


def test_the_same_step_again_replaces_it(run):
    writer.write_checkpoint(run, 1, FILES)
    folder = writer.write_checkpoint(run, 1, FILES | {layout.STATE: b"[]"})
    assert (folder / layout.STATE).read_bytes() == b"[]"
    assert reader.find_damage(folder) is None


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, full_disk):
    folder = tmp_path / layout.ADAPTER
    writer.write_folder(folder, {"a": b"old", "b": b"old"})
    full_disk(2)
    with pytest.raises(UserError, match=r"cannot write .*adapter.*: No space left on device"):
        writer.write_folder(folder, {"a": b"new", "c": b"new"})
    assert names(tmp_path) == ["adapter"] and names(folder) == ["a", "b"]
    assert (folder / "a").read_bytes() == b"old"
    full_disk(99)
    writer.write_folder(folder, {"a": b"new", "c": b"new"})
    assert names(tmp_path) == ["adapter"] and names(folder) == ["a", "c"]


def test_pruning_goes_by_number_and_spares_best_and_last(run):
    for step in (2, 3, 9, 10, 100, 1_000_000_000):
        writer.write_checkpoint(run, step, FILES)
    writer.mark_best(run, 2)
    writer.prune_checkpoints(run, keep_newest=3)
    assert reader.Run(run).checkpoint_steps() == [2, 10, 100, 1_000_000_000]
    writer.prune_checkpoints(run, keep_newest=1, needed=10)
    assert reader.Run(run).checkpoint_steps() == [2, 10, 1_000_000_000]


def test_pruning_counts_whole_checkpoints_only(run):
    for step in (1, 2, 3, 4):
        writer.write_checkpoint(run, step, FILES)
    (reader.Run(run).checkpoint(3) / layout.MODEL).write_bytes(b"torn")
    writer.prune_checkpoints(run, keep_newest=2)
    assert reader.Run(run).checkpoint_steps() == [2, 4]


def test_pruning_removes_what_a_run_fell_back_from(run):
    for step in (3, 6, 9, 10):
        writer.write_checkpoint(run, step, FILES)
    writer.mark_best(run, 3)
    writer.write_checkpoint(run, 6, FILES)  # 9 and 10 were damaged, and 6 comes once more
    writer.prune_checkpoints(run, keep_newest=2)
    assert reader.Run(run).checkpoint_steps() == [3, 6]
    writer.mark_best(run, 6)
    assert (run / layout.CHECKPOINTS / layout.BEST).is_file()


def test_who_is_muted_touches_no_checkpoint(tmp_path: Path) -> None:
    """Another process may be writing it at that moment."""
    writer.write_checkpoint(tmp_path, 3, {"model.safetensors": b"first"})
    with writer.muted():
        writer.write_checkpoint(tmp_path, 3, {"model.safetensors": b"second"})
    files = sorted(path.name for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert "model.safetensors" in files
    assert (next((tmp_path / "checkpoints").glob("step_*")) / "model.safetensors").read_bytes() == b"first"
