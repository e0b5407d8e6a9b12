"""CSV files as data: one row per image, with its path, its label and, where given, its split."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from warmstart.data.columns import (
    Table,
    doubled_note,
    file_sizes,
    find_column,
    ignored_columns,
    make_source,
    need_column,
    place,
    text_codes,
    unique_rows,
)
from warmstart.data.samples import FilePixels, Source
from warmstart.errors import UserError, listing

_DELIMITERS = ",;\t"
_SNIFFED = 65536  # characters that decide on the delimiter


def open_csv(path: Path) -> Source:
    """Images named in a CSV file; relative paths start at its folder. A missing image is a corrupt one."""
    header, rows = _read(path)
    title = path.name
    path_column = need_column(title, header, "image path")
    label_column = need_column(title, header, "label")
    split_column = find_column(header, "split")
    used = [path_column, label_column, split_column]
    notes = ignored_columns(title, header, used)
    cells = {name: header.index(name) for name in used if name is not None}
    columns = {name: [row[cell].strip() for row in rows] for name, cell in cells.items()}
    _check_filled(title, columns)
    places = [place(path.parent, written) for written in columns[path_column]]
    notes += doubled_note(title, places)
    ids = [name for name, *_ in places]
    facts = list(zip(*(column for name, column in columns.items() if name != path_column), strict=True))
    kept, twins = unique_rows(title, ids, facts)
    codes, names = text_codes([columns[label_column][row] for row in kept])
    files = tuple(places[row][1] for row in kept)
    table = Table(
        title,
        tuple(ids[row] for row in kept),
        codes,
        names,
        None if split_column is None else [columns[split_column][row] for row in kept],
        FilePixels(files),
        file_sizes(files),
    )
    return make_source(table, [*notes, *twins])


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows, blank lines left out. Raises UserError for what is no table."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start})", "a CSV file in UTF-8", "save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "a readable CSV file") from error
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


def _check_filled(title: str, columns: dict[str, list[str]]) -> None:
    problems = []
    for name, cells in columns.items():
        empty = [row for row, cell in enumerate(cells, 1) if not cell]
        if empty:
            what = f"{title}: the column {name} is empty in {len(empty)} rows: row {listing(empty, 5)}"
            problems.append(UserError(what, "a value in every row", "fill these cells, or remove the rows"))
    if problems:
        raise UserError.of_problems(problems, title)
