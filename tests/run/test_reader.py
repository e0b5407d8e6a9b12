"""Runs are read while they grow, after they were torn, and by every form of reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from warmstart.errors import UserError
from warmstart.run import layout, reader, writer


def test_a_run_in_progress(run):
    found = reader.open_run(run)
    assert found.config == {"optim": {"lr": 0.1}}
    assert found.plan == {"rows": []}
    assert found.status == {"state": "unknown"}
    assert found.metrics.rows == found.evals.rows == []
    assert found.checkpoint_steps() == []
    assert found.pointer(layout.LAST) is None


def test_rows_taken_back_by_a_resume(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in ({"step": 1}, {"step": 2}, {"step": 3}, {"kind": "resume", "step": 1}, {"step": 2, "new": 1}):
        writer.append_row(path, row)
    assert reader.read_rows(path) == reader.Rows([{"step": 1}, {"step": 2, "new": 1}], 0)
    writer.append_row(path, {"kind": "resume", "step": 2})
    assert [row["step"] for row in reader.read_rows(path).rows] == [1, 2]


def test_damaged_rows_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    torn = [
        b'{"step": 2, "lo',
        b"\xff\xfe",
        b"3",
        b"[1]",
        b"null",
        b'{"loss": 1}',
        b'{"kind": "resume"}',
        b"",
    ]
    path.write_bytes(b"\n".join([b'{"step": 1}', *torn, b'{"step": 4}', b'{"st']))
    rows = reader.read_rows(path)
    assert [row["step"] for row in rows.rows] == [1, 4]
    assert rows.num_damaged == 8
    assert reader.read_rows(tmp_path / "none.jsonl") == reader.Rows([], 0)


def test_a_whole_checkpoint_has_no_damage(with_steps):
    for step in (2, 9, 12):
        assert reader.find_damage(reader.Run(with_steps).checkpoint(step)) is None


@pytest.mark.parametrize("name", [layout.MODEL, layout.STATE_TENSORS, layout.STATE])
def test_damage_of_every_kind_is_found(with_steps, name):
    folder = reader.Run(with_steps).checkpoint(9)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert reader.find_damage(folder) == f"{name} has {len(whole) - 1} bytes instead of {len(whole)}"
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert reader.find_damage(folder) == f"{name} does not have the contents it was written with"
    path.unlink()
    assert reader.find_damage(folder) == f"{name} is missing"
    other = layout.STATE if name != layout.STATE else layout.MODEL
    assert reader.find_damage(folder, (other,)) is None  # only what is asked for is read


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"\xff", b"[]", b"{}", b'{"files": []}', b'{"files": {"model.safetensors": 1}}'],
)
def test_a_manifest_that_cannot_be_trusted(with_steps, content):
    folder = reader.Run(with_steps).checkpoint(9)
    path = folder / layout.MANIFEST
    path.unlink() if content is None else path.write_bytes(content)
    assert reader.find_damage(folder) == "MANIFEST.json is missing or unreadable"


@pytest.mark.parametrize(("suffix", "step"), [("", 9), ("@best", 9), ("@last", 12), ("@2", 2), ("@12", 12)])
def test_references(with_steps, suffix, step):
    run, found, file = reader.model_file(f"{with_steps}{suffix}")
    assert (run.path, found) == (with_steps, step)
    assert file.read_bytes() == b"%d" % step * 50


def test_a_run_without_a_best_gives_its_last(with_steps):
    (with_steps / layout.CHECKPOINTS / layout.BEST).unlink()
    assert reader.model_file(str(with_steps))[1] == 12
    with pytest.raises(UserError, match=r"has no checkpoint best\nExpected: one of the steps kept: 2, 9, 12"):
        reader.model_file(f"{with_steps}@best")


def test_a_pointer_that_was_spoilt_names_nothing(with_steps):
    (with_steps / layout.CHECKPOINTS / layout.BEST).write_bytes(b"\xff\xfe")
    assert reader.Run(with_steps).pointer(layout.BEST) is None


def test_references_to_nothing(run, with_steps, tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint 3\nExpected: one of the steps kept: 2, 9, 12"):
        reader.model_file(f"{with_steps}@3")
    shutil.rmtree(with_steps / layout.CHECKPOINTS)
    with pytest.raises(
        UserError, match=r"has no checkpoint to read\nExpected: one of the steps kept: none yet"
    ):
        reader.model_file(str(run))
    with pytest.raises(
        UserError, match=r"/oen does not exist\nExpected: a run directory\nFix: Did you mean 'one'\?"
    ):
        reader.model_file(str(run.parent / "oen"))


def test_a_damaged_checkpoint_names_the_others(with_steps):
    (reader.Run(with_steps).checkpoint(9) / layout.MODEL).write_bytes(b"")
    with pytest.raises(UserError, match=r"step 9 in .* is damaged: .*\n.*\nFix: name another step: 2, 12"):
        reader.model_file(str(with_steps))


def test_what_stands_after_the_at_sign():
    assert reader.split_reference("a/b@12") == (Path("a/b"), "12")
    assert reader.split_reference("me@home/b@best") == (Path("me@home/b"), "best")
    for plain in ("a/b", "me@home/b", "b@first", "b@", "b@1²"):
        assert reader.split_reference(plain) == (Path(plain), None)


def test_a_folder_of_runs_is_no_run(with_steps):
    with pytest.raises(
        UserError, match=r"is not a run directory\n.*\nFix: it holds the runs one: name one of them"
    ):
        reader.open_run(with_steps.parent)
    with pytest.raises(
        UserError, match=r"is not a run directory\nExpected: a folder with config.yaml and res"
    ):
        reader.open_run(with_steps / layout.CHECKPOINTS)


def test_runs_of_a_folder(with_steps, tmp_path):
    shutil.copytree(with_steps, with_steps.parent / "another")
    (with_steps.parent / "no run").mkdir()
    assert [run.path.name for run in reader.find_runs(with_steps.parent)] == ["another", "one"]
    assert reader.find_runs(with_steps) == []
    with pytest.raises(UserError, match=r"nowhere is not a folder\n.*\nFix: `warmstart runs FOLDER`"):
        reader.find_runs(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"])
@pytest.mark.parametrize("name", ["config", "plan", "resolved", "status"])
def test_damaged_files_are_named(run, name, content):
    file = {
        "config": layout.CONFIG,
        "plan": layout.PLAN,
        "resolved": layout.RESOLVED,
        "status": layout.STATUS,
    }[name]
    (run / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        getattr(reader.Run(run), name)


def test_a_file_that_is_gone_is_named(run):
    (run / layout.PLAN).unlink()
    with pytest.raises(UserError, match=r"cannot read .*plan\.json: No such file"):
        reader.Run(run).plan  # noqa: B018


def test_a_run_of_another_format_is_refused(run):
    writer.write_json(run / layout.RESOLVED, {"format": 99})
    with pytest.raises(UserError, match=r"has the run format 99\nExpected: format 2"):
        reader.Run(run).resolved  # noqa: B018


def test_a_run_whose_process_is_gone_is_said_to_be_killed(tmp_path):
    import os
    import platform
    import subprocess
    import sys

    from warmstart.run.writer import write_json, write_status

    write_status(tmp_path, "running")
    assert reader.Run(tmp_path).status["state"] == "running", "this process is alive"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    record = {"state": "running", "pid": int(gone.stdout), "host": platform.node()}
    write_json(tmp_path / layout.STATUS, record)
    assert reader.Run(tmp_path).status["state"] == ("killed" if os.name == "posix" else "running")
    if Path("/proc").is_dir():
        own = {**record, "pid": os.getpid()}
        write_json(tmp_path / layout.STATUS, {**own, "born": "before the last boot:1"})
        assert reader.Run(tmp_path).status["state"] == "killed", "this process has only the same number"
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its entry stays until it is waited for
            write_json(tmp_path / layout.STATUS, {**record, "pid": ended.pid})
            assert reader.Run(tmp_path).status["state"] == "killed"
    write_json(tmp_path / layout.STATUS, {**record, "host": "elsewhere"})
    assert reader.Run(tmp_path).status["state"] == "running", "another machine's processes cannot be seen"


def test_splits_there_and_back_and_damaged(run):
    assert reader.Run(run).splits == {}
    (run / layout.SPLITS).write_bytes(b'id,split\r\n"a, ""b"".png",val\r\nc.png,train\r\n')
    assert reader.Run(run).splits == {'a, "b".png': "val", "c.png": "train"}
    for content in (b"", b"id,split\r\na.png\r\n", b"\xff", b"image,split\r\na,b\r\n"):
        (run / layout.SPLITS).write_bytes(content)
        with pytest.raises(UserError, match=r"splits\.csv is damaged"):
            _ = reader.Run(run).splits
