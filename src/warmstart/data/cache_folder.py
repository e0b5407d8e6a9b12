"""The folder that holds what can be computed again: where it is, how large it may grow, what goes first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from itertools import chain
from pathlib import Path

PIXELS, FEATURES = "pixels", "features"  # folders inside it
# The user may keep other things in the same folder, so what is ours is named exactly; nothing else is ever removed.
_OURS = (f"{PIXELS}/*.pixels", f"{FEATURES}/*.npy")
MEMORY_SHARE = 0.25  # of the machine's
DISK_SHARE = 0.5  # of the space that is free or already the cache's own; the rest stays the user's


def cache_root(cache_dir: str | None) -> Path:
    """The folder that `--cache-dir` names, else `$XDG_CACHE_HOME/warmstart` or `~/.cache/warmstart`."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmstart"


def ram() -> int:
    """Bytes of the machine's memory; 0 where the system does not tell how much there is."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_room() -> int:
    """Bytes that a cache in memory may take."""
    return int(MEMORY_SHARE * ram())


def room(folder: Path) -> int:
    """Bytes that all files of the cache together may take. Raises OSError where there can be no folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = sum(size for _, size, _ in _files(folder))
    return int(DISK_SHARE * (shutil.disk_usage(folder).free + own))


def make_room(folder: Path, needed: int, spared: Collection[str]) -> bool:
    """Remove the files that were not used for longest until `needed` bytes fit; whether they do.

    Files named in `spared` stay: they belong to the run that asks.
    """
    limit = room(folder) - needed
    files = sorted(_files(folder))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            break
        if path.name not in spared:
            with suppress(FileNotFoundError):  # another process may tidy up at the same time
                path.unlink()
            total -= size
    return total <= limit


def mark_used(path: Path) -> None:
    """Move a file to the end of the line of those to be removed."""
    with suppress(OSError):  # a folder that may only be read is a cache all the same
        os.utime(path)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every finished file of ours."""
    found = []
    for path in chain.from_iterable(folder.glob(pattern) for pattern in _OURS):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    return found
