"""What every table of images has: columns found by name, splits by word, one row per image, one class map."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from warmstart.data.folders import SPLIT_WORDS
from warmstart.data.samples import Pixels, Samples, Source
from warmstart.errors import UserError, closest, listing

# Role -> names that a column may have, the most telling first; upper or lower case.
COLUMNS = {
    "image path": ("image_path", "filepath", "path", "filename", "file", "image"),
    "label": ("label", "class", "target", "class_name", "category"),
    "split": ("split",),
}


@dataclass(frozen=True, eq=False)
class Table:
    """N rows as a file holds them. `codes` (int64) count into `names`; `words` are the splits as written."""

    title: str  # how messages call it
    ids: tuple[str, ...]
    codes: np.ndarray
    names: tuple[str, ...]
    words: Sequence[str] | None
    pixels: Pixels
    sizes: bytes  # whatever tells another state of the files from this one
    ordered: bool = False  # the file itself says which class comes first


def find_column(columns: Sequence[str], role: str, names: Sequence[str] = ()) -> str | None:
    """The column that plays a role (COLUMNS), or one of `names`; the first in the order of the names."""
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names or COLUMNS[role] if name in by_name), None)


def need_column(title: str, columns: Sequence[str], role: str, names: Sequence[str] = ()) -> str:
    """`find_column`, or the UserError that names what was there and what was looked for."""
    found = find_column(columns, role, names)
    if found is None:
        wanted = names or COLUMNS[role]
        hint = next((said for name in columns if (said := closest(name.strip().lower(), wanted))), "")
        raise UserError(
            f"{title} has no {role} column; its columns are {listing(columns) or 'none'}",
            f"a column called {' or '.join(wanted)}",
            f"rename the column that holds it. {hint}".strip(),
        )
    return found


def ignored_columns(title: str, columns: Iterable[str], used: Iterable[str | None]) -> list[str]:
    """The note on columns that nobody asked for."""
    others = [column for column in columns if column not in set(used)]
    return [f"{title}: ignored the columns {listing(others)}"] if others else []


def place(root: Path, written: str) -> tuple[str, Path, bool]:
    """(id, file, was the path doubled) of a path in a table that lies in `root`.

    A path may already start with the folder it lies in (data/cats/1.png in data/labels.csv): where
    that would name data/data/cats/1.png, which is not there, the folder counts once.
    """
    relative = PurePosixPath(written.replace("\\", "/"))
    path = root / relative
    if not relative.is_absolute() and _size(path) < 0:
        here = root.absolute()
        for num in range(1, len(relative.parts)):
            if here.parts[-num:] == relative.parts[:num]:
                single = here.parents[num - 1] / relative
                if _size(single) >= 0:
                    return relative.as_posix(), single, True
    return relative.as_posix(), path, False


def doubled_note(title: str, places: Sequence[tuple[str, Path, bool]]) -> list[str]:
    """The note on paths that `place` did not double."""
    num = sum(doubled for *_, doubled in places)
    return [f"{title}: {num} paths already start with the folder; it was counted once"] if num else []


def file_sizes(paths: Iterable[Path]) -> bytes:
    """The sizes of files for a fingerprint; -1 where there is none."""
    return ",".join(str(_size(path)) for path in paths).encode()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a table may hold what no path can, such as a zero byte
        return -1


def unique_rows(
    title: str, ids: Sequence[str], facts: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, list[str]]:
    """The first row of every image, with a note on the others.

    Raises UserError where an image comes twice with different facts (label, split).
    """
    first: dict[str, int] = {}
    clashes = []
    for row, name in enumerate(ids):
        before = first.setdefault(name, row)
        if facts[before] != facts[row]:
            clashes.append(f"{name} ({' / '.join(facts[before])} and {' / '.join(facts[row])})")
    if clashes:
        raise UserError(
            f"{title} lists {len(clashes)} images twice, with different labels or splits: {listing(clashes, 4)}",
            "one label and one split per image",
            "remove the wrong rows",
        )
    num_twins = len(ids) - len(first)
    notes = [f"{title}: {num_twins} rows repeat an image and were dropped"] if num_twins else []
    return np.fromiter(first.values(), dtype=np.int64, count=len(first)), notes


def text_codes(labels: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class names, sorted (as numbers where all are), and the place of each label among them."""
    names = sorted(set(labels))
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (int(name), name))
    number = {name: code for code, name in enumerate(names)}
    return np.array([number[label] for label in labels], dtype=np.int64), tuple(names)


def split_rows(title: str, words: Sequence[str] | None, num: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Split -> rows, in the order train, val, test; `all` where there is none, or only one."""
    everything = {"all": np.arange(num)}
    if words is None:
        return everything, []
    counts = Counter(words)
    unknown = [word for word in counts if word.strip().lower() not in SPLIT_WORDS]
    if unknown:
        what = listing(f"{word!r} ({counts[word]} rows)" for word in unknown)
        hint = closest(unknown[0].strip().lower(), SPLIT_WORDS)
        raise UserError(
            f"{title} has unknown splits: {what}",
            f"one of {listing(SPLIT_WORDS, 20)}",
            f"correct the split column. {hint}".strip(),
        )
    meaning = {word: SPLIT_WORDS[word.strip().lower()] for word in counts}
    canonical = np.array([meaning[word] for word in words], dtype="U5")
    found = {split: np.flatnonzero(canonical == split) for split in ("train", "val", "test")}
    found = {split: rows for split, rows in found.items() if len(rows)}
    if len(found) == 1:
        return everything, [f"{title} has the split {next(iter(found))} only: its images are split"]
    return found, []


def make_source(table: Table, notes: Sequence[str] = ()) -> Source:
    """Splits and classes of a table. Raises UserError for classes that only val or test have."""
    if not len(table.ids):
        raise UserError(f"{table.title} has no rows", "one row per image")
    rows, split_notes = split_rows(table.title, table.words, len(table.ids))
    if "train" in rows and not table.ordered:
        _check_known(table, rows)
    samples = Samples(table.ids, table.codes, table.pixels)
    splits = {split: samples.subset(indices) for split, indices in rows.items()}
    return Source(table.names, splits, _fingerprint(table, rows), (*notes, *split_notes))


def _check_known(table: Table, rows: dict[str, np.ndarray]) -> None:
    known = set(np.unique(table.codes[rows["train"]]).tolist())
    problems = []
    for split in rows:
        unseen = [code for code in np.unique(table.codes[rows[split]]).tolist() if code not in known]
        if unseen:
            names = listing(repr(table.names[code]) for code in unseen)
            hint = closest(table.names[unseen[0]], [table.names[code] for code in sorted(known)])
            problems.append(f"{split} has {names}, train has not. {hint}".strip())
    if problems:
        raise UserError(
            f"labels of {table.title} differ between splits: {' '.join(problems)}",
            "every label among the training images too",
            "correct the labels, or move rows to train",
        )


def _fingerprint(table: Table, rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256("\0".join(table.names).encode("utf-8", "surrogateescape"))
    digest.update("\n".join(table.ids).encode("utf-8", "surrogateescape"))
    digest.update(table.codes.tobytes())
    for split, indices in rows.items():
        digest.update(split.encode() + indices.tobytes())
    digest.update(table.sizes)
    return digest.hexdigest()
