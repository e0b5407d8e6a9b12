"""A folder of trials belongs to one process at a time: two would end each other's trials."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.process import birth_of, is_gone


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder is this process' alone; it is made where it is missing, and leaves again if it stayed empty.

    Raises:
        UserError: another process of this machine works there, the file that says so is damaged, or no folder can be
            made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}", "a place for a folder") from error
    file, mine = folder / layout.OWNER, who_is(os.getpid())
    _claim(file)
    try:
        writer.write_json(file, mine)
        yield
    finally:
        with suppress(OSError, UserError):
            if read_who(file) == mine:
                file.unlink()
            folder.rmdir()


def who_is(pid: int) -> dict[str, Any]:
    """What tells a process of this machine from all others."""
    return {"pid": pid, "born": birth_of(pid), "host": platform.node()}


def read_who(file: Path) -> dict[str, Any]:
    """As `who_is` gave it. UserError: the file is damaged."""
    try:
        who: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"pid": int, "born": str | None, "host": str}
        is_whole = who.keys() == kinds.keys() and all(isinstance(who[name], kinds[name]) for name in kinds)
    except (ValueError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{file} is damaged: it says which process is working there",
            "the JSON that was written",
            "remove it if no other process does",
        )
    return who


def _claim(file: Path) -> None:
    """Make the file, which only one process can. What a process left that has ended gives way."""
    while True:
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return
        except FileExistsError:
            pass
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror or error}", "a writable folder") from error
        with suppress(FileNotFoundError):  # its process has just ended
            _remove_left(file)


def _remove_left(file: Path) -> None:
    """UserError: its process is alive, or it is damaged."""
    told, who = file.read_bytes(), read_who(file)
    if who["host"] == platform.node() and not is_gone(who["pid"], who["born"]):
        raise UserError(
            f"process {who['pid']} is working in {file.parent}",
            "a folder of its own for each process",
            "wait for it, or name another --output-dir",
        )
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    file.rename(aside)
    if aside.read_bytes() == told:
        aside.unlink()
    else:  # between the look and the move another process has taken the folder: it gets its file back
        aside.rename(file)
