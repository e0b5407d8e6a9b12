"""What every table of images has: columns found by name, splits by word, one row per image, one class map."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from warmstart.data.folders import SPLIT_WORDS
from warmstart.data.labels import Labels
from warmstart.data.masks import MaskPixels
from warmstart.data.samples import FilePixels, Pixels, Samples, Source
from warmstart.errors import UserError, closest, listing

_SEVERAL = " Several columns of 0 and 1, one per label: name them with --label-columns."

# Role -> names that a column may have, the most telling first; upper or lower case.
COLUMNS = {
    "image path": ("image_path", "filepath", "path", "filename", "file_name", "file", "image"),
    "label": ("label", "class", "target", "class_name", "category", "labels", "tags"),
    "split": ("split",),
    "group": ("group",),
    "class number": ("class_id",),
    "mask": ("mask_path", "mask", "mask_file", "label_path", "annotation_path", "segmentation"),
}


@dataclass(frozen=True, eq=False)
class Table:
    """N rows, one per image; `words` are the splits as written, `groups` int64 (N,) or None."""

    title: str  # how messages call it
    ids: tuple[str, ...]
    labels: Labels
    words: Sequence[str] | None
    groups: np.ndarray | None
    pixels: Pixels
    sizes: bytes = b""  # whatever tells another state of the table's own files from this one
    ordered: bool = False  # the file itself says which class comes first
    masks: MaskPixels | None = None  # instead of labels
    ignore: int | None = None  # the id of masks that belongs to no class
    captions: Sequence[object] | None = None  # a text of each image

    def subset(self, rows: np.ndarray) -> Table:
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=replace(self.labels, targets=self.labels.targets[rows]),
            words=None if self.words is None else [self.words[row] for row in rows],
            groups=None if self.groups is None else self.groups[rows],
            pixels=self.pixels.subset(rows),
            masks=None if self.masks is None else self.masks.subset(rows),
        )


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
            f"rename the column that holds it. {hint}{_SEVERAL if role == 'label' else ''}".strip(),
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


def _file_sizes(paths: Iterable[Path]) -> bytes:
    """The sizes of files for a fingerprint; -1 where there is none."""
    return ",".join(str(_size(path)) for path in paths).encode()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a table may hold what no path can, such as a zero byte
        return -1


def _without_twins(table: Table) -> tuple[Table, list[str]]:
    """The first row of every image, with a note on the others.

    Raises UserError where an image comes twice with different facts (labels, split, group).
    """
    num_twins = len(table.ids) - len(set(table.ids))
    if not num_twins:
        return table, []
    columns: list[Sequence[object]] = [table.labels.told()]
    columns += [] if table.words is None else [table.words]
    columns += [] if table.groups is None else [[f"group {code}" for code in table.groups]]
    if table.masks is not None and isinstance(table.masks.files, FilePixels):
        columns.append(table.masks.files.paths)
    facts = list(zip(*columns, strict=True))
    first: dict[str, int] = {}
    clashes = []
    for row, name in enumerate(table.ids):
        before = first.setdefault(name, row)
        if facts[before] != facts[row]:
            told = [" / ".join(str(fact) or "no label" for fact in facts[place]) for place in (before, row)]
            clashes.append(f"{name} ({told[0]} and {told[1]})")
    if clashes:
        raise UserError(
            f"{table.title} lists {len(clashes)} images twice, with different labels, splits or groups: "
            f"{listing(clashes, 4)}",
            "the same labels, split and group wherever an image comes",
            "remove the wrong rows",
        )
    kept = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    return table.subset(kept), [f"{table.title}: {num_twins} rows repeat an image and were dropped"]


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


def number_rows(title: str, words: list[str] | None, num: int) -> list[str]:
    """Ids by split and row."""
    ids = [""] * num
    for split, rows in split_rows(title, words, num)[0].items():
        for place_in_split, row in enumerate(rows.tolist()):
            ids[row] = f"{split}/{place_in_split:06d}"
    return ids


def make_source(table: Table, notes: Sequence[str] = ()) -> Source:
    """Splits and classes of a table. Raises UserError for classes that only val or test have."""
    if not len(table.ids):
        raise UserError(f"{table.title} has no rows", "one row per image")
    table, twins = _without_twins(table)
    rows, split_notes = split_rows(table.title, table.words, len(table.ids))
    labels = table.labels
    if "train" in rows and not table.ordered:
        _check_known(table, rows)
    samples = Samples(table.ids, labels.targets, table.pixels, table.groups, table.masks)
    splits = {split: samples.subset(indices) for split, indices in rows.items()}
    told = (*labels.notes, *notes, *twins, *split_notes)
    captions = None if table.captions is None else dict(zip(table.ids, table.captions, strict=True))
    return Source(labels.names, splits, _fingerprint(table, rows), told, table.ignore, captions)


def _check_known(table: Table, rows: dict[str, np.ndarray]) -> None:
    names = table.labels.names
    present = {split: _present(table.labels.targets[indices]) for split, indices in rows.items()}
    known = present["train"]
    problems = []
    for split, codes in present.items():
        unseen = sorted(codes - known)
        if unseen:
            told = listing(repr(names[code]) for code in unseen)
            hint = closest(names[unseen[0]], [names[code] for code in sorted(known)])
            problems.append(f"{split} has {told}, train has not. {hint}".strip())
    if problems:
        raise UserError(
            f"labels of {table.title} differ between splits: {' '.join(problems)}",
            "every label among the training images too",
            "correct the labels, or move rows to train",
        )


def _present(targets: np.ndarray) -> set[int]:
    """The classes that some row has."""
    found = np.unique(targets) if targets.ndim == 1 else np.flatnonzero(targets.any(axis=0))
    return set(found.tolist())


def _fingerprint(table: Table, rows: dict[str, np.ndarray]) -> str:
    """Of images, labels and splits as given; how groups are asked for makes no other data of them."""
    digest = hashlib.sha256("\0".join(table.labels.names).encode("utf-8", "surrogateescape"))
    digest.update("\n".join(table.ids).encode("utf-8", "surrogateescape"))
    digest.update(table.labels.targets.tobytes())
    for split, indices in rows.items():
        digest.update(split.encode() + indices.tobytes())
    digest.update(table.sizes)
    for pixels in (table.pixels, table.masks and table.masks.files):
        if isinstance(pixels, FilePixels):
            digest.update(_file_sizes(pixels.paths))
    return digest.hexdigest()
