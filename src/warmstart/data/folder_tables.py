"""A table of labels beside its images: labels.csv, or Hugging Face's metadata.csv and metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from warmstart.data.columns import find_column, place
from warmstart.data.csv_table import Rows, open_rows, read_csv
from warmstart.data.decode import IMAGE_SUFFIXES
from warmstart.data.folders import split_folders_of, subfolders
from warmstart.data.labels import text_of
from warmstart.data.mask_columns import TableColumns
from warmstart.data.samples import Source
from warmstart.data.text_files import read_text
from warmstart.errors import UserError, listing

_NAMES = ("labels.csv", "metadata.csv", "metadata.jsonl")


def open_folder_table(root: Path, columns: TableColumns) -> tuple[Source | None, list[str]]:
    """The data set of the table in `root`, or of one in each split folder; with notes.

    A table decides over class folders where it has labels and its images exist; else they decide, and None
    is returned. Raises UserError where neither is usable.
    """
    files = _files(root)
    if not files:
        return None, []
    title = (
        files[0].name if len(files) == 1 else f"{files[0].name} of {listing(f.parent.name for f in files)}"
    )
    header, rows = _together(root, files)
    fault = _fault(root, header, rows, columns)
    if _has_class_folders(root):
        if fault is not None:
            return None, [f"{title} is ignored, the class folders decide: {fault}"]
        notes = [f"{title} names the labels; the folders are not taken for classes"]
    elif fault == _NO_IMAGES:
        raise UserError(
            f"{title}: {fault}, such as {rows[0][header.index(find_column(header, 'image path') or '')]}",
            f"paths that start at {root}",
            "move the file, or correct its paths",
        )
    else:
        notes = []
    return open_rows(title, root, header, rows, columns), notes


def _files(root: Path) -> list[Path]:
    """The table of `root`, or those of its split folders. Raises UserError where there are two."""
    found = []
    folders = split_folders_of(root)
    for folder in (root, *folders.values()):
        here = [folder / name for name in _NAMES if (folder / name).is_file()]
        if len(here) > 1:
            raise UserError(
                f"{folder} holds {listing(path.name for path in here)}",
                "one table of labels",
                "give the right one as --data, or move the others away",
            )
        if here and folder == root:
            return here
        found += here
    without = [folder.name for folder in folders.values() if folder not in {path.parent for path in found}]
    if found and without and not _has_class_folders(root):
        raise UserError(
            f"{root}: {listing(path.relative_to(root).as_posix() for path in found)}, but none in {listing(without)}",
            "a table in every split folder",
        )
    return [] if without else found


def _together(root: Path, files: list[Path]) -> Rows:
    """The rows of all files, as if one file in `root` held them with a split column."""
    read = [_read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path) for path in files]
    if files[0].parent == root:
        return read[0]
    header = read[0][0]
    rows = []
    for path, (own_header, own_rows) in zip(files, read, strict=True):
        if own_header != header:
            raise UserError(
                f"the columns of {files[0]} are {listing(header)}, those of {path} {listing(own_header)}",
                "the same columns in every split",
            )
        cell = header.index(find_column(header, "image path") or header[0])
        for row in own_rows:
            inside = f"{path.parent.name}/{row[cell].strip()}"
            rows.append([*row[:cell], inside, *row[cell + 1 :]])
    return header, rows


def _read_jsonl(path: Path) -> Rows:
    """One JSON object per line; what is no text becomes text, but for lists and objects as labels."""
    records = []
    for number, line in enumerate(read_text(path, "one JSON object per line").split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}", "one JSON object per line") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number} is no JSON object", "one JSON object per line")
            records.append(record)
    if not records:
        raise UserError(f"{path} has no rows", "one JSON object per image")
    header = list(dict.fromkeys(name for record in records for name in record))
    label = find_column(header, "label")
    return header, [[_cell(record.get(name), name == label) for name in header] for record in records]


def _cell(value: object, is_label: bool) -> Any:
    return value if is_label and isinstance(value, (list, dict)) else text_of(value)


def has_masks(root: Path, columns: TableColumns) -> bool:
    """Whether there is a table in `root`, or in its split folders, with a column of masks."""
    files = [folder / name for folder in (root, *split_folders_of(root).values()) for name in _NAMES]
    files = [path for path in files if path.is_file()]
    if not files:
        return False
    header, _ = _read_jsonl(files[0]) if files[0].suffix == ".jsonl" else read_csv(files[0])
    return find_column(header, "mask", _named(columns)) is not None


def _named(columns: TableColumns) -> tuple[str, ...]:
    named = columns["masks"].place
    return () if named is None else (named.strip().lower(),)


_NO_IMAGES = "none of its images exists"


def _fault(root: Path, header: list[str], rows: list[list[Any]], columns: TableColumns) -> str | None:
    """Why the table is of no use, in words; None where it is."""
    column = find_column(header, "image path")
    if column is None:
        return "it has no column of image paths"
    labels = find_column(header, "label") is not None or columns["label_columns"]
    if not labels and find_column(header, "mask", _named(columns)) is None:
        return "it has no column of labels"
    cell = header.index(column)
    if not any(place(root, row[cell].strip())[1].is_file() for row in rows):
        return _NO_IMAGES
    return None


def _has_class_folders(root: Path) -> bool:
    """Whether folders that may be classes hold images."""
    homes = split_folders_of(root).values() or [root]
    classes = [folder for home in homes for folder in subfolders(home)]
    classes = [folder for folder in classes if folder.name not in ("images", "data")]
    return len(classes) > 1 and all(
        any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()) for folder in classes
    )
