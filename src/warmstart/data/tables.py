"""Parquet files as data: encoded images inside the table (Hugging Face, OCEC), or paths to image files.

The one door of data/ to pyarrow. Embedded images are held once, encoded, in Arrow's own buffers.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warmstart.data.columns import (
    COLUMNS,
    Table,
    doubled_note,
    file_sizes,
    find_column,
    ignored_columns,
    make_source,
    need_column,
    place,
    split_rows,
    text_codes,
    unique_rows,
)
from warmstart.data.embedded import EmbeddedPixels
from warmstart.data.samples import FilePixels, Pixels, Source
from warmstart.errors import UserError, listing

_BYTES_COLUMNS = ("image_bytes", "image", "img", "bytes")
_LABEL_COLUMNS = (*COLUMNS["label"], "labels", "class_id")
_EXPECTED = "a parquet file with images (bytes or paths) and labels"


@dataclass(frozen=True)
class _Layout:
    """Which columns of a file are what; `names` are the classes in the file's own order."""

    data: str | None  # encoded images, `image.bytes` inside a struct
    path: str | None  # `image.path` inside a struct
    label: str
    split: str | None
    names: tuple[str, ...] | None
    others: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Read:
    """The columns of all files, one after the other."""

    chunks: tuple[pa.Array, ...]
    paths: list[str | None]
    labels: list[object]
    words: list[str | None]
    sizes: bytes


def open_parquet(files: dict[Path, str | None], title: str) -> Source:
    """A labelled data set in parquet files; the split of a file, where it has one, goes before its column."""
    layouts = {path: _layout(path, by_name=word is not None) for path, word in files.items()}
    names = _agreed_names(layouts)
    read = _read_all(files, layouts)
    words = _words(title, read.words)
    first = next(iter(layouts.values()))
    codes, classes = _codes(f"{title}: the column {first.label}", read.labels, names)
    notes = ignored_columns(title, [*first.others], [])
    if names is not None:
        notes.append(f"{title}: classes in the order of the file's ClassLabel, not sorted: {listing(names)}")
    root, kept, sizes = next(iter(files)).parent, np.arange(len(codes)), read.sizes
    pixels: Pixels
    if any(chunk.null_count < len(chunk) for chunk in read.chunks):
        ids, pixels = _embedded(title, root, read, words)
    else:
        ids, images, told = _in_files(title, root, read)
        facts = list(zip((classes[code] for code in codes), words or [""] * len(codes), strict=True))
        kept, twins = unique_rows(title, ids, facts)
        pixels = images.subset(kept)
        notes, sizes = [*notes, *told, *twins], sizes + file_sizes(pixels.paths)
    table = Table(
        title,
        tuple(ids[row] for row in kept),
        codes[kept],
        classes,
        None if words is None else [words[row] for row in kept],
        pixels,
        sizes,
        names is not None,
    )
    return make_source(table, notes)


def _layout(path: Path, by_name: bool) -> _Layout:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}",
            "a whole parquet file",
            "download the file again",
        ) from error
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and "bytes" in _inside(field)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    struct = find_column(structs, "", _BYTES_COLUMNS) or (structs[0] if len(structs) == 1 else None)
    if struct is not None:
        image: str | None = f"{struct}.path" if "path" in _inside(schema.field(struct)) else None
        data: str | None = f"{struct}.bytes"
        used = {struct}
    else:
        data = find_column(binaries, "", _BYTES_COLUMNS)
        image = find_column(texts, "image path")
        used = {name for name in (data, image) if name is not None}
    if not used:
        columns = [f"{field.name} ({field.type})" for field in schema]
        raise UserError(
            f"{path.name} has no image column; its columns are {listing(columns)}",
            f"a struct of bytes and path (Hugging Face), a binary column called "
            f"{' or '.join(_BYTES_COLUMNS)}, or a text column called {' or '.join(COLUMNS['image path'])}",
            "rename the column that holds the images",
        )
    features = _features(schema)
    left = [name for name in schema.names if name not in used]
    label = find_column(left, "label", _LABEL_COLUMNS)
    if label is None:
        marked = [name for name in left if features.get(name, {}).get("names")]
        label = marked[0] if len(marked) == 1 else need_column(path.name, left, "label", _LABEL_COLUMNS)
    split = None if by_name else find_column(left, "split")
    names = features.get(label, {}).get("names")
    others = tuple(name for name in left if name not in (label, split))
    return _Layout(data, image, label, split, tuple(map(str, names)) if names else None, others)


def _inside(field: pa.Field) -> list[str]:
    return [field.type.field(number).name for number in range(field.type.num_fields)]


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _features(schema: pa.Schema) -> dict[str, dict[str, list[str]]]:
    """Column -> Hugging Face's description of it; empty where there is none or it cannot be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = found if isinstance(found, dict) else {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def _agreed_names(layouts: dict[Path, _Layout]) -> tuple[str, ...] | None:
    given = {path: layout.names for path, layout in layouts.items() if layout.names is not None}
    different = list(dict.fromkeys(given.values()))
    if len(different) > 1:
        told = "; ".join(f"{path.name}: {listing(names or ())}" for path, names in given.items())
        raise UserError(f"the files name different classes: {told}", "the same ClassLabel names in all files")
    return different[0] if different else None


def _read_all(files: dict[Path, str | None], layouts: dict[Path, _Layout]) -> _Read:
    """Row group by row group, so that no more than one is held besides what is kept."""
    read = _Read((), [], [], [], b"")
    chunks: list[pa.Array] = []
    sizes = []
    for path, word in files.items():
        layout = layouts[path]
        columns = [name for name in (layout.data, layout.path, layout.label, layout.split) if name]
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                sizes.append([path.stat().st_size, *((g.num_rows, g.total_byte_size) for g in groups)])
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, columns=columns, use_threads=False)
                    chunks += _column(table, layout.data, pa.large_binary()).chunks
                    read.paths.extend(_column(table, layout.path, pa.string()).to_pylist())
                    read.labels.extend(table[layout.label].to_pylist())
                    told = _column(table, layout.split, pa.string()).to_pylist()
                    read.words.extend([word] * len(table) if word else told)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} cannot be read: {error}", _EXPECTED, "download the file again"
            ) from error
    return _Read(tuple(chunks), read.paths, read.labels, read.words, repr(sizes).encode())


def _column(table: pa.Table, name: str | None, kind: pa.DataType) -> pa.ChunkedArray:
    """A column, or the field of a struct (`image.bytes`), as `kind`; only nulls where it has no name."""
    if name is None:
        return pa.chunked_array([pa.nulls(len(table), kind)])
    outer, _, inner = name.partition(".")
    if inner and outer in table.column_names:
        return pc.struct_field(table[outer], inner).cast(kind)
    return table[name].cast(kind)


def _words(title: str, words: list[str | None]) -> list[str] | None:
    told = [word for word in words if word is not None]
    if told and len(told) < len(words):
        raise UserError(
            f"{title}: {len(words) - len(told)} of {len(words)} rows have no split",
            "a split in every row, or in none",
            "fill the split column",
        )
    return told or None


def _codes(
    where: str, labels: list[object], names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as places in the class names, which are the file's own or the labels as text."""
    missing = [row for row, label in enumerate(labels, 1) if label is None]
    if missing:
        raise UserError(
            f"{where} is empty in {len(missing)} rows: row {listing(missing, 5)}",
            "a label in every row",
            "fill these cells, or remove the rows",
        )
    if names is None:
        return text_codes([str(label) for label in labels])
    number: dict[object, int] = {name: code for code, name in enumerate(names)}
    number |= {code: code for code in range(len(names))}
    strange = Counter(label for label in labels if label not in number)
    if strange:
        told = listing(f"{label!r} ({num} rows)" for label, num in strange.items())
        raise UserError(
            f"{where} holds labels without a name: {told}",
            f"0 to {len(names) - 1}, for {listing(names)}",
            "remove these rows; -1 stands for images whose label is kept secret" if -1 in strange else "",
        )
    return np.array([number[label] for label in labels], dtype=np.int64), names


def _embedded(title: str, root: Path, read: _Read, words: list[str] | None) -> tuple[list[str], Pixels]:
    """Ids (the path where it tells images apart, else split and row) and pixels of images in the table."""
    num = len(read.labels)
    ids = [PurePosixPath(path).as_posix() if path else "" for path in read.paths]
    if "" in ids or len(set(ids)) < num:
        ids = [""] * num
        for split, rows in split_rows(title, words, num)[0].items():
            for place_in_split, row in enumerate(rows.tolist()):
                ids[row] = f"{split}/{place_in_split:06d}"
    starts = np.cumsum([0, *map(len, read.chunks)], dtype=np.int64)
    files = {}
    for start, chunk in zip(starts.tolist(), read.chunks, strict=False):
        for row in (start + np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))).tolist():
            if (path := read.paths[row]) is not None:
                files[row] = place(root, path)[1]
    return ids, EmbeddedPixels(read.chunks, starts[:-1], np.arange(num), files)


def _in_files(title: str, root: Path, read: _Read) -> tuple[list[str], FilePixels, list[str]]:
    """Ids, pixels and notes where the table holds only paths."""
    written = [path for path in read.paths if path]
    if len(written) < len(read.paths):
        raise UserError(
            f"{title}: {len(read.paths) - len(written)} of {len(read.paths)} rows have no image",
            "image bytes or a path in every row",
            "remove these rows",
        )
    places = [place(root, path) for path in written]
    return (
        [name for name, *_ in places],
        FilePixels(tuple(path for _, path, _ in places)),
        doubled_note(title, places),
    )
