"""Which parquet files of a folder make a data set, and which split each holds, by their names alone."""

from __future__ import annotations

import re
from pathlib import Path

from warmstart.data.folders import SPLIT_WORDS
from warmstart.errors import UserError, listing

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{3,})-of-(?P<total>\d{3,})$")
_NAMES = "train.parquet and test.parquet, train-00000-of-00002.parquet, or dataset.parquet"
_WHOLE = "dataset.parquet"  # OCEC's name for one file with a split column


def parquet_files(root: Path) -> dict[Path, str | None]:
    """File -> split (None: a column may tell) in the order of splits and shards; empty if they are no data set.

    One file without a split in its name counts only where no folders, which may be classes, lie beside it.
    """
    files = sorted(path for path in root.iterdir() if path.suffix.lower() == ".parquet" and path.is_file())
    files = [path for path in files if not path.name.startswith(".")]
    named = {path: _split_of(path) for path in files}
    if any(named.values()):
        strangers = [path.name for path, split in named.items() if split is None]
        if strangers:
            raise UserError(
                f"{root} holds parquet files with and without a split in their names: {listing(strangers)}",
                _NAMES,
                "rename the files, or give one of them as --data",
            )
        order = ["train", "val", "test"]
        found = dict(sorted(named.items(), key=lambda item: (order.index(item[1] or ""), item[0].name)))
    elif root / _WHOLE in files:
        found = {root / _WHOLE: None}
    elif len({_stem(path) for path in files}) > 1:
        raise UserError(
            f"{root} holds several parquet files whose names tell no split: {listing(p.name for p in files)}",
            _NAMES,
            "rename the files, or give one of them as --data",
        )
    else:
        alone = not any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir())
        found = dict.fromkeys(files) if alone or len(files) > 1 else {}
    _check_shards(root, list(found))
    return found


def _split_of(path: Path) -> str | None:
    """The split that a file's name tells: cifar10-train, val01, test-00000-of-00001."""
    words = re.findall(r"[a-z]+", path.stem.lower())
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(splits) > 1:
        raise UserError(
            f"the name of {path} tells several splits: {listing(sorted(splits))}", _NAMES, "rename it"
        )
    return splits.pop() if splits else None


def _stem(path: Path) -> str:
    match = _SHARD.match(path.stem)
    return match["stem"] if match else path.stem


def _check_shards(root: Path, files: list[Path]) -> None:
    """Raise UserError where some of the shards that the names promise are not there."""
    families: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if match := _SHARD.match(path.stem):
            families.setdefault((match["stem"], int(match["total"])), set()).add(int(match["number"]))
    for (stem, total), numbers in families.items():
        missing = sorted(set(range(total)) - numbers)
        if missing:
            raise UserError(
                f"{root} has {len(numbers)} of the {total} parts of {stem}; missing: {listing(missing)}",
                "every part that the names promise",
                "download the missing parts",
            )
