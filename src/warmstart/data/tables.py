"""Parquet and Arrow files as data: encoded images inside the table (Hugging Face, OCEC), or paths to image files.

Embedded images are held once, encoded, in Arrow's own buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from warmstart.data.arrow_files import features_of, read_pieces, read_schema
from warmstart.data.columns import (
    COLUMNS,
    Table,
    doubled_note,
    find_column,
    ignored_columns,
    make_source,
    need_column,
    number_rows,
    place,
)
from warmstart.data.embedded import EmbeddedPixels
from warmstart.data.mask_columns import TableColumns, find_masks, no_labels
from warmstart.data.mask_settings import NO_MASKS, MaskSettings, read_legend
from warmstart.data.masks import MaskPixels
from warmstart.data.roles import Roles, find_roles, groups_of, labels_of
from warmstart.data.samples import FilePixels, Source
from warmstart.errors import UserError, listing

_BYTES_COLUMNS = ("image_bytes", "image", "img", "bytes")
_LABEL_COLUMNS = (*COLUMNS["label"], "class_id")


@dataclass(frozen=True)
class _Picture:
    """Where one kind of picture is: encoded in `data`, in files at `path`, or either; `image.bytes` inside a struct."""

    data: str | None
    path: str | None


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The pictures of one kind of all files, one after the other."""

    chunks: list[pa.Array]
    paths: list[str | None]


@dataclass(frozen=True)
class _Layout:
    """Which columns of a file are what; `names` are the classes in the file's own order."""

    image: _Picture
    mask: _Picture | None
    roles: Roles
    names: tuple[str, ...] | None
    others: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Read:
    """The columns of all files, one after the other."""

    images: _Encoded
    masks: _Encoded
    cells: dict[str, list[object]]  # by the first file's names of the columns of labels and groups
    words: list[str | None]
    sizes: bytes


def open_parquet(
    files: dict[Path, str | None],
    title: str,
    group: str | None = None,
    label_columns: Sequence[str] = (),
    masks: MaskSettings = NO_MASKS,
    captions: str | None = None,
) -> Source:
    """A labelled data set in parquet or Arrow files; the split of a file, where it has one, goes before its column.

    `group` names a column whose equal cells belong together, `label_columns` columns of 0 and 1; `masks` is
    what is said about a column of masks, `captions` a column of texts.
    """
    wanted: TableColumns = {
        "group": group,
        "label_columns": label_columns,
        "masks": masks,
        "captions": captions,
    }
    layouts = {path: _layout(path, word is not None, wanted) for path, word in files.items()}
    names = _agreed_names(layouts)
    layouts, lone_notes = _without_lone_groups(title, layouts)
    read = _read_all(files, layouts)
    words = _words(title, read.words)
    first = next(iter(layouts.values()))
    root = next(iter(files)).parent
    legend = None if first.mask is None else read_legend(masks, root)
    num = len(read.words)
    labels = labels_of(title, first.roles, read.cells, names) if legend is None else no_labels(num, legend)
    groups, group_notes = groups_of(title, first.roles, read.cells)
    notes = ignored_columns(title, [*first.others], []) + lone_notes + group_notes
    if names is not None:
        notes.append(f"{title}: classes in the order of the file's ClassLabel, not sorted: {listing(names)}")
    ids, pixels, told = _pixels(title, root, read.images)
    if ids is None:
        ids = number_rows(title, words, num)
    texts = None if first.roles.caption is None else read.cells[first.roles.caption]
    table = Table(
        title, tuple(ids), labels, words, groups, pixels, read.sizes, names is not None, captions=texts
    )
    if legend is not None:
        _, files_of_masks, _ = _pixels(title, root, read.masks)
        said = read.sizes + repr(read.masks.paths).encode("utf-8", "surrogateescape") + legend.stamp()
        coded = MaskPixels(files_of_masks, legend.coding)
        table = replace(table, masks=coded, ignore=legend.ignore, sizes=said)
    return make_source(table, [*notes, *told])


def _layout(path: Path, by_name: bool, wanted: TableColumns) -> _Layout:
    group, label_columns = wanted["group"], wanted["label_columns"]
    schema = read_schema(path)
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and "bytes" in _inside(field)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    struct = find_column(structs, "", _BYTES_COLUMNS) or (structs[0] if len(structs) == 1 else None)
    if struct is not None:
        image, used = _picture(schema, struct), {struct}
    else:
        image = _Picture(find_column(binaries, "", _BYTES_COLUMNS), find_column(texts, "image path"))
        used = {name for name in (image.data, image.path) if name is not None}
    if not used:
        columns = [f"{field.name} ({field.type})" for field in schema]
        raise UserError(
            f"{path.name} has no image column; its columns are {listing(columns)}",
            f"a struct of bytes and path (Hugging Face), a binary column called "
            f"{' or '.join(_BYTES_COLUMNS)}, or a text column called {' or '.join(COLUMNS['image path'])}",
            "rename the column that holds the images",
        )
    left = [name for name in schema.names if name not in used]
    features = features_of(schema)
    mask = find_masks(path.name, left, wanted["masks"], label_columns)
    if mask is None and not label_columns:  # pictures called label
        mask = find_column([name for name in left if name in structs], "", (*_LABEL_COLUMNS, "annotation"))
    left = [name for name in left if name != mask]
    label = None if label_columns or mask is not None else _label_column(path.name, left, features)
    roles = find_roles(path.name, left, label, group, label_columns, wanted.get("captions"))
    if by_name:
        roles = replace(roles, split=None)
    names = features.get(label or "", {}).get("names")
    others = tuple(name for name in left if name not in roles.used)
    masks = None if mask is None else _picture(schema, mask)
    return _Layout(image, masks, roles, tuple(map(str, names)) if names else None, others)


def _picture(schema: pa.Schema, name: str) -> _Picture:
    """A column of pictures: a struct of bytes and path, bytes, or paths."""
    if pa.types.is_struct(schema.field(name).type):
        path = f"{name}.path" if "path" in _inside(schema.field(name)) else None
        return _Picture(f"{name}.bytes", path)
    return _Picture(name, None) if _is_binary(schema.field(name).type) else _Picture(None, name)


def _label_column(title: str, columns: list[str], features: dict[str, dict[str, list[str]]]) -> str:
    """By its name, or the only column that Hugging Face calls a ClassLabel."""
    found = find_column(columns, "label", _LABEL_COLUMNS)
    if found is not None:
        return found
    marked = [name for name in columns if features.get(name, {}).get("names")]
    return marked[0] if len(marked) == 1 else need_column(title, columns, "label", _LABEL_COLUMNS)


def _inside(field: pa.Field) -> list[str]:
    return [field.type.field(number).name for number in range(field.type.num_fields)]


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _agreed_names(layouts: dict[Path, _Layout]) -> tuple[str, ...] | None:
    given = {path: layout.names for path, layout in layouts.items() if layout.names is not None}
    different = list(dict.fromkeys(given.values()))
    if len(different) > 1:
        told = "; ".join(f"{path.name}: {listing(names or ())}" for path, names in given.items())
        raise UserError(f"the files name different classes: {told}", "the same ClassLabel names in all files")
    return different[0] if different else None


def _without_lone_groups(title: str, layouts: dict[Path, _Layout]) -> tuple[dict[Path, _Layout], list[str]]:
    """The layouts without a column of groups that nobody asked for and only some files have; with a note."""
    found = [layout.roles.group for layout in layouts.values() if layout.roles.group is not None]
    if len(found) in (0, len(layouts)):
        return layouts, []
    told = f"{title}: the column {found[0]} is not used: only {len(found)} of {len(layouts)} files have it"
    return {
        path: replace(layout, roles=replace(layout.roles, group=None)) for path, layout in layouts.items()
    }, [told]


def _read_all(files: dict[Path, str | None], layouts: dict[Path, _Layout]) -> _Read:
    """Piece by piece, so that no more than one is held besides what is kept."""
    roles = next(iter(layouts.values())).roles
    cells: dict[str, list[object]] = {name: [] for name in roles.used if name != roles.split}
    read = _Read(_Encoded([], []), _Encoded([], []), cells, [], b"")
    sizes: list[list[object]] = []
    for path, word in files.items():
        layout = layouts[path]
        own = layout.roles
        pictures = [(layout.image, read.images)]
        pictures += [] if layout.mask is None else [(layout.mask, read.masks)]
        columns = [name for picture, _ in pictures for name in (picture.data, picture.path) if name]
        columns += own.used
        here_of: dict[str | None, str | None] = dict(zip(roles.labels, own.labels, strict=True))
        here_of |= {roles.group: own.group, roles.class_number: own.class_number, roles.caption: own.caption}
        sizes.append([path.stat().st_size])
        for table, size in read_pieces(path, columns):
            sizes[-1].append(size)
            for picture, found in pictures:
                found.chunks.extend(_column(table, picture.data, pa.large_binary()).chunks)
                found.paths.extend(_column(table, picture.path, pa.string()).to_pylist())
            for name in cells:
                here = here_of[name]
                cells[name].extend([None] * len(table) if here is None else table[here].to_pylist())
            told = _column(table, own.split, pa.string()).to_pylist()
            read.words.extend([word] * len(table) if word else told)
    return replace(read, sizes=repr(sizes).encode())


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


def _pixels(
    title: str, root: Path, read: _Encoded
) -> tuple[list[str] | None, EmbeddedPixels | FilePixels, list[str]]:
    """Ids (None where paths do not tell pictures apart), pixels in the table or in files, and notes."""
    if not any(chunk.null_count < len(chunk) for chunk in read.chunks):
        return _in_files(title, root, read)
    num = len(read.paths)
    ids = [PurePosixPath(path).as_posix() if path else "" for path in read.paths]
    starts = np.cumsum([0, *map(len, read.chunks)], dtype=np.int64)
    files = {}
    for start, chunk in zip(starts.tolist(), read.chunks, strict=False):
        for row in (start + np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))).tolist():
            if (path := read.paths[row]) is not None:
                files[row] = place(root, path)[1]
    pixels = EmbeddedPixels(tuple(read.chunks), starts[:-1], np.arange(num), files)
    return None if "" in ids or len(set(ids)) < num else ids, pixels, []


def _in_files(title: str, root: Path, read: _Encoded) -> tuple[list[str], FilePixels, list[str]]:
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
