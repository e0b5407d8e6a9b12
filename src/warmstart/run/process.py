"""Whether the process that wrote a run still lives: its number alone may belong to another one by now."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def birth_of(pid: int) -> str | None:
    """What no other process of this number has: when it began, in which boot of the machine. None off Linux."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = _fields(pid)
    except OSError:
        return None
    return f"{boot}:{fields[19]}"


def is_gone(pid: int, born: str | None) -> bool:
    """Whether a process of this machine is known to have ended; `born` is its birth, if that was recorded."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it exists and belongs to somebody else
        pass
    try:
        if _fields(pid)[0] in "ZX":  # ended, and nobody has asked how yet
            return True
    except OSError:
        return False
    return born is not None and birth_of(pid) != born


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on: what stands before may hold blanks."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
