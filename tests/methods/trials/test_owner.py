"""The lock of a folder: one at a time, what a dead process left gives way, and nobody removes another's."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from warmstart.errors import UserError
from warmstart.methods.trials.owner import owned, read_who, who_is
from warmstart.run import layout, writer


def test_a_folder_has_one_owner_and_stays_only_if_something_lies_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with owned(folder):
        assert read_who(folder / layout.OWNER) == who_is(os.getpid())
        with pytest.raises(UserError, match=f"process {os.getpid()} is working in .*out"), owned(folder):
            pass
        assert (folder / layout.OWNER).exists(), "who was refused has taken nothing away"
    assert not folder.exists()
    with owned(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with pytest.raises(UserError, match=r"cannot make .*kept"), owned(folder / "kept"):
        pass


def test_what_a_dead_process_left_gives_way_and_another_one_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / layout.OWNER
    child = subprocess.Popen([sys.executable, "-c", ""])
    who = who_is(child.pid)
    child.wait()
    writer.write_json(file, who)
    other = {"pid": 1, "born": None, "host": "elsewhere"}
    with owned(tmp_path):
        assert read_who(file)["pid"] == os.getpid()
        file.write_text(json.dumps(other))
    assert read_who(file) == other
    assert [path.name for path in tmp_path.iterdir()] == [layout.OWNER]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "1", "born": null, "host": "a"}'])
def test_a_damaged_owner_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / layout.OWNER).write_text(text)
    with pytest.raises(UserError, match=r"(?s)owner.pid is damaged.*remove it"), owned(tmp_path):
        pass
    assert (tmp_path / layout.OWNER).read_text() == text


def test_the_same_number_on_another_machine_is_another_process(tmp_path: Path) -> None:
    who = {**who_is(os.getppid()), "host": platform.node() + "-b"}
    writer.write_json(tmp_path / layout.OWNER, who)
    with owned(tmp_path):
        pass
