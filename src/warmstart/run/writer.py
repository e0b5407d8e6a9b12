"""Writing a run directory: whole files appear at once or not at all, rows are appended."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from warmstart.errors import UserError
from warmstart.records import finite
from warmstart.run import layout
from warmstart.run.process import birth_of
from warmstart.run.reader import Run, find_damage

_is_muted = False


@contextmanager
def muted() -> Iterator[None]:
    """Nothing is written: of several processes of one run only the first one writes."""
    global _is_muted
    _is_muted = True
    try:
        yield
    finally:
        _is_muted = False


class Pieces(Protocol):
    """A content that is made while it is written."""

    num_bytes: int

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


Content = bytes | Pieces


def write_whole(path: Path, content: Content) -> str:
    """Write a file under a temporary name, flush it to disk, and move it into place. The sha256 of what was written.

    Every whole file of a run goes through here, so a full disk shows up in one place only.

    Raises:
        UserError: the disk is full or not writable; what stood at `path` before is untouched.
    """
    digest = sha256()
    if _is_muted:
        return digest.hexdigest()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error, _size(content)) from error
    finally:
        with suppress(OSError):  # it is gone if all went well
            temporary.unlink()
    return digest.hexdigest()


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.num_bytes


def _cannot_write(path: Path, error: OSError, num_bytes: int) -> UserError:
    if path.parent.name.startswith("."):  # the temporary folder of a checkpoint
        path = path.parent
    happened = f"cannot write {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            happened,
            f"room for {num_bytes / 1e6:.1f} MB in {path.parent}",
            "free some space; what was saved before is intact",
        )
    return UserError(happened, f"an existing folder {path.parent} that can be written to")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON row. A crash can tear only the last row, which readers skip and count.

    Numbers that JSON has no word for (NaN, infinity) are written as null.
    """
    if _is_muted:
        return
    line = json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False)
    try:
        with path.open("a+b") as file:
            # A torn last row of an earlier process must not swallow this one.
            is_torn = False
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                is_torn = file.read(1) != b"\n"
            file.write((b"\n" if is_torn else b"") + line.encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"cannot append to {path}: {error.strerror or error}", "a writable disk with room"
        ) from error


def flush_rows(run: Path) -> None:
    """Have the rows on disk: without that a power cut may leave a checkpoint, and lose rows from before it.

    Raises:
        UserError: the disk is full.
    """
    if _is_muted:
        return
    for path in (run / layout.METRICS, run / layout.EVALS):
        if not path.exists():
            continue
        try:
            with path.open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(path, error, path.stat().st_size) from error


def create_run(folder: Path) -> Path:
    """Make a new run directory; refuses one that holds anything.

    Raises:
        UserError: the directory is not empty or cannot be made.
    """
    if _is_muted:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"the run directory {folder} is not empty",
                "a new or empty directory",
                f"choose another --output-dir or --name, or `warmstart resume {folder}`",
            )
        (folder / layout.CHECKPOINTS).mkdir()
        (folder / layout.PREDICTIONS).mkdir()
    except OSError as error:
        raise UserError(f"cannot make the run directory {folder}: {error.strerror or error}") from error
    return folder


def write_status(run: Path, state: str, **details: Any) -> None:
    """`state` is running, interrupted, finished or failed; readers say killed where the process is gone."""
    pid = os.getpid()
    who = {"pid": pid, "host": platform.node(), "born": birth_of(pid)}
    write_json(run / layout.STATUS, {"state": state, **who, **details})


def write_checkpoint(run: Path, step: int, files: Mapping[str, Content]) -> Path:
    """Write a checkpoint folder with its MANIFEST (sizes and sha256), then move LAST to it.

    The rows that were written before it are on disk by then.

    Raises:
        UserError: the disk is full; the temporary folder is removed, older checkpoints are intact.
    """
    root = run / layout.CHECKPOINTS
    final = root / layout.checkpoint_name(step)
    if _is_muted:
        return final
    flush_rows(run)

    def manifest(digests: Mapping[str, str]) -> bytes:
        found = {name: {"bytes": _size(files[name]), "sha256": digest} for name, digest in digests.items()}
        return json_bytes({"format": layout.FORMAT_VERSION, "step": step, "files": found})

    write_folder(final, files, manifest)
    write_text(root / layout.LAST, final.name + "\n")
    return final


def write_folder(
    final: Path, files: Mapping[str, Content], manifest: Callable[[Mapping[str, str]], bytes] | None = None
) -> None:
    """Write a folder, in the place of one that stands there already.

    It is complete before it gets its name, so a reader never sees half of one. `manifest` makes the content of its
    MANIFEST of the files' sha256.

    Raises:
        UserError: the disk is full; the temporary folder is removed.
    """
    if _is_muted:
        return
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        digests = {name: write_whole(temporary / name, content) for name, content in files.items()}
        if manifest is not None:
            write_whole(temporary / layout.MANIFEST, manifest(digests))
        if final.exists():  # the same again, after a resume
            shutil.rmtree(final)
        temporary.replace(final)
    except OSError as error:
        raise _cannot_write(final, error, sum(map(_size, files.values()))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is gone if all went well


def mark_best(run: Path, step: int) -> None:
    write_text(run / layout.CHECKPOINTS / layout.BEST, layout.checkpoint_name(step) + "\n")


def prune_checkpoints(run: Path, keep_newest: int, needed: int | None = None) -> None:
    """Remove all but the newest `keep_newest` whole ones, and never those that BEST or LAST name or step `needed`.

    Those beyond LAST were given up, damaged or before a rescue: the run will come to their steps again.
    """
    known = Run(run)
    last, best = known.pointer(layout.LAST), known.pointer(layout.BEST)
    steps = [step for step in known.checkpoint_steps() if last is None or step <= last]
    whole = [step for step in steps if find_damage(known.checkpoint(step), by_hash=False) is None]
    kept = {*whole[-keep_newest:], last, best, needed}
    for step in known.checkpoint_steps():
        if step not in kept:
            shutil.rmtree(known.checkpoint(step))
