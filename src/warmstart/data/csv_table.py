"""CSV files as data: one row per image, with its path, its label and, where given, its split."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from warmstart.data.columns import (
    Table,
    doubled_note,
    find_column,
    ignored_columns,
    make_source,
    need_column,
    place,
)
from warmstart.data.folders import SPLIT_WORDS
from warmstart.data.labels import SEPARATOR
from warmstart.data.mask_columns import TableColumns, find_masks, no_labels
from warmstart.data.mask_settings import NO_MASKS, MaskSettings, read_legend
from warmstart.data.masks import MaskPixels
from warmstart.data.roles import find_roles, groups_of, labels_of
from warmstart.data.samples import FilePixels, Source
from warmstart.data.text_files import read_text
from warmstart.errors import UserError, listing

Rows = tuple[list[str], list[list[Any]]]  # header, cells: text; of labels, lists too


_DELIMITERS = ",;\t"
_SNIFFED = 65536  # characters that decide on the delimiter


def open_csv(
    path: Path,
    group: str | None = None,
    label_columns: Sequence[str] = (),
    masks: MaskSettings = NO_MASKS,
    captions: str | None = None,
) -> Source:
    """Images named in a CSV file; relative paths start at its folder. A missing image is a corrupt one.

    `group` names a column whose equal cells belong together, `label_columns` columns of 0 and 1; `masks` is
    what is said about a column of masks, `captions` a column of texts.
    """
    columns: TableColumns = {
        "group": group,
        "label_columns": label_columns,
        "masks": masks,
        "captions": captions,
    }
    return open_rows(path.name, path.parent, *read_csv(path), columns)


def open_rows(
    title: str, root: Path, header: list[str], rows: list[list[Any]], columns: TableColumns
) -> Source:
    """`open_csv` for rows that were read already; relative paths start at `root`.

    Without a column of splits, split folders that all paths start with tell them.
    """
    folder_notes = []
    if find_column(header, "split") is None and (words := _folder_words(header, rows)) is not None:
        header, rows = [*header, "split"], [[*row, word] for row, word in zip(rows, words, strict=True)]
        folder_notes = [f"{title}: splits by the folders of the images"]
    group, label_columns = columns["group"], columns["label_columns"]
    path_column = need_column(title, header, "image path")
    mask = find_masks(title, header, columns["masks"], label_columns)
    label = None if label_columns or mask is not None else need_column(title, header, "label")
    roles = find_roles(title, header, label, group, label_columns, columns.get("captions"))
    used = [path_column, *roles.used, *([] if mask is None else [mask])]
    _check_single(title, header, used)
    cells = {name: [_stripped(row[header.index(name)]) for row in rows] for name in used}
    full = [path_column, *(name for name in (roles.split, mask) if name is not None)]
    if label is not None and not any(isinstance(cell, list) or SEPARATOR in cell for cell in cells[label]):
        full.insert(1, label)
    _check_filled(title, {name: cells[name] for name in full})
    places = [place(root, written) for written in cells[path_column]]
    notes = folder_notes + ignored_columns(title, header, used) + doubled_note(title, places)
    groups, group_notes = groups_of(title, roles, cells)
    legend = None if mask is None else read_legend(columns["masks"], root)
    table = Table(
        title,
        tuple(name for name, *_ in places),
        labels_of(title, roles, cells) if legend is None else no_labels(len(rows), legend),
        None if roles.split is None else cells[roles.split],
        groups,
        FilePixels(tuple(file for _, file, _ in places)),
        captions=None if roles.caption is None else cells[roles.caption],
    )
    if legend is not None and mask is not None:
        files = FilePixels(tuple(place(root, written)[1] for written in cells[mask]))
        said = "\n".join(cells[mask]).encode("utf-8", "surrogateescape") + legend.stamp()
        table = replace(table, masks=MaskPixels(files, legend.coding), ignore=legend.ignore, sizes=said)
    return make_source(table, [*notes, *group_notes])


def read_csv(path: Path) -> Rows:
    """Header and rows, blank lines left out. Raises UserError for what is no table."""
    text = read_text(path, "a CSV file")
    try:
        rows = list(
            csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
        )
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}", "a header and one row per image") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise UserError(f"{path} has {len(rows)} rows", "a header and one row per image")
    header, body = [cell.strip() for cell in rows[0]], rows[1:]
    odd = [number for number, row in enumerate(body, 1) if len(row) != len(header)]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} rows have not {len(header)} cells as the header has: row {listing(odd, 5)}",
            "as many cells in every row",
            "put cells that hold the delimiter in double quotes",
        )
    return header, body


def _delimiter(text: str) -> str:
    header = text.partition("\n")[0]
    present = [sign for sign in _DELIMITERS if sign in header]
    if len(present) < 2:
        return present[0] if present else ","
    try:
        return csv.Sniffer().sniff(text[:_SNIFFED], _DELIMITERS).delimiter
    except csv.Error:
        return max(present, key=header.count)


def _folder_words(header: list[str], rows: list[list[Any]]) -> list[str] | None:
    """The split folder in which each image lies; None unless every image lies in one."""
    cell = header.index(find_column(header, "image path") or header[0])
    words = [row[cell].strip().replace("\\", "/").partition("/")[0] for row in rows]
    return words if all(word.lower() in SPLIT_WORDS for word in words) else None


def _stripped(cell: Any) -> Any:
    return cell.strip() if isinstance(cell, str) else cell


def _check_single(title: str, header: list[str], used: list[str]) -> None:
    for name in used:
        same = [other for other in header if other.strip().lower() == name.strip().lower()]
        if len(same) > 1:
            raise UserError(
                f"{title} has several columns called {name}: {listing(same)}",
                "one",
                "rename or remove the others",
            )


def _check_filled(title: str, columns: dict[str, list[Any]]) -> None:
    problems = []
    for name, cells in columns.items():
        empty = [row for row, cell in enumerate(cells, 1) if not cell]
        if empty:
            what = f"{title}: the column {name} is empty in {len(empty)} rows: row {listing(empty, 5)}"
            problems.append(UserError(what, "a value in every row", "fill these cells, or remove the rows"))
    if problems:
        raise UserError.of_problems(problems, title)
