"""What lies at a path: class folders, IDX files, CSV, parquet, or loose images to predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from warmstart.config.places import MEMORY, is_path
from warmstart.config.values import is_pattern
from warmstart.data.arrow_files import saved_files
from warmstart.data.csv_table import open_csv
from warmstart.data.folder_tables import has_masks, open_folder_table
from warmstart.data.folders import find_images, open_folders
from warmstart.data.groups import group_by_pattern
from warmstart.data.idx import idx_files, open_idx
from warmstart.data.mask_columns import TableColumns
from warmstart.data.mask_folders import LAYOUTS, Homes, find_mask_folders, open_mask_folders
from warmstart.data.mask_settings import NO_MASKS, MaskSettings
from warmstart.data.memory import open_memory
from warmstart.data.samples import FilePixels, Samples, Source, printable
from warmstart.data.table_files import parquet_files
from warmstart.data.tables import open_parquet
from warmstart.data.tiny_imagenet import is_tiny_imagenet, open_tiny_imagenet
from warmstart.data.torchvision_sets import open_torchvision
from warmstart.errors import UserError, closest, listing

_PACKED = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"))


def open_source(
    path: str | Path,
    *,
    allow_single_class: bool = False,
    group: str | None = None,
    label_columns: Sequence[str] = (),
    download: bool = False,
    masks: MaskSettings = NO_MASKS,
    captions: str | None = None,
) -> Source:
    """Detect and list a labelled data set; no image is decoded.

    `group` names a column of a table, or is a pattern over the ids (groups.py); `label_columns` are
    columns of a table that make a multi-label data set; `download` fetches torchvision's sets; `masks` is
    what is said about index masks, which a data set may have instead of labels (Source.ignore); `captions` names a
    column with a text of each image (Source.captions).

    Raises UserError where the path, the folders or the files are not what a data set needs.
    """
    columns: TableColumns = {
        "group": None if group is None or is_pattern(group) else group,
        "label_columns": tuple(label_columns),
        "masks": masks,
        "captions": captions,
    }
    source = open_place(str(path), columns, download)
    if source.ignore is None and masks.given:
        raise UserError(
            f"{listing(f'{flag} {value}' for flag, value in masks.given.items())}: {path} has no masks",
            f"a segmentation data set: {LAYOUTS}, or a table with a column of masks",
            "leave these settings out, or say where the masks are with --masks",
        )
    if group is not None and is_pattern(group):
        source = group_by_pattern(source, group)
    if not allow_single_class:
        check_classes(source, path)
    return source


def check_classes(source: Source, path: str | Path) -> None:
    """UserError for labels that are all the same."""
    if source.ignore is None and len(source.classes) < 2:
        only = Path(path).expanduser() / source.classes[0]
        deeper = only.is_dir() and any(inside.is_dir() for inside in only.iterdir())
        raise UserError(
            f"{path} has one class only: {only.name}",
            "at least two classes",
            f"if the data lie one level deeper: --data {only}" if deeper else "",
        )


def open_place(
    place: str,
    columns: TableColumns,
    download: bool = False,
    folders: Callable[[Path], Source] = open_folders,
) -> Source:
    """As it lies there; `folders` reads a folder that is nothing else than class folders. Raises as `open_source`."""
    if not is_path(place):
        _refuse_columns(place, columns)
        return open_memory(place) if place.startswith(MEMORY) else open_torchvision(place, download)
    root = Path(place).expanduser()
    _check_exists(root)
    return _open_folder(root, columns, folders) if root.is_dir() else _open_file(root, columns)


def _open_folder(root: Path, columns: TableColumns, folders: Callable[[Path], Source]) -> Source:
    if files := idx_files(root):
        _refuse_columns(root, columns)
        return open_idx(root, files)
    if saved := saved_files(root):
        return open_parquet(saved, root.absolute().name, **columns)
    for folder in (root, root / "data"):  # Hugging Face keeps the files in data/
        if folder.is_dir() and (tables := parquet_files(folder)):
            return open_parquet(tables, root.absolute().name, **columns)
    if is_tiny_imagenet(root):
        _refuse_columns(root, columns)
        return open_tiny_imagenet(root)
    homes, notes = _mask_folders(root, columns)
    if homes:
        _refuse_columns(root, columns)
        source = open_mask_folders(root, homes, columns["masks"])
    else:
        found, notes = open_folder_table(root, columns)
        if found is None:
            _refuse_columns(root, columns)
        source = found or folders(root)
    return replace(source, notes=(*notes, *source.notes))


def _mask_folders(root: Path, columns: TableColumns) -> tuple[Homes, list[str]]:
    """Folders of masks, unless a table in `root` names the masks."""
    named = columns["masks"].place
    if named is not None and has_masks(root, columns):
        return {}, []
    homes, notes = find_mask_folders(root, named)
    return ({}, []) if homes and named is None and has_masks(root, columns) else (homes, notes)


def _refuse_columns(root: Path | str, columns: TableColumns) -> None:
    named = {
        "--group": columns["group"],
        "--label-columns": listing(columns["label_columns"]),
        "--text.captions": columns.get("captions"),
    }
    for flag, value in named.items():
        if value:
            raise UserError(
                f"{flag} {value}: {root} is no table, and has no columns",
                "a CSV or parquet file with that column",
                "write a pattern over the ids, such as ^(patient[0-9]+)_" if flag == "--group" else "",
            )


def _open_file(path: Path, columns: TableColumns) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return open_csv(path, **columns)
    if suffix == ".parquet":
        return open_parquet({path: None}, path.name, **columns)
    fix = f"give the folder that holds it: --data {path.parent}"
    if suffix in _PACKED and "ubyte" not in path.name:
        fix = "unpack it and give the folder"
    raise UserError(f"{path} is a file", "class folders, IDX files, CSV or parquet", fix)


def open_images(paths: Sequence[str | Path]) -> Samples:
    """Unlabelled images (targets -1): files as named, folders with all images below them.

    Ids are the paths as the user wrote them; a file that is named twice counts once.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        place = path.expanduser()
        _check_exists(place)
        images = find_images(place).images if place.is_dir() else [place]
        for image in images:
            found.setdefault((path / image.relative_to(place)).as_posix(), image)
    if not found:
        raise UserError(
            f"no images in {listing(paths) or 'an empty list of paths'}",
            "image files, or folders that hold some",
        )
    targets = np.full(len(found), -1, dtype=np.int64)
    return Samples(tuple(map(printable, found)), targets, FilePixels(tuple(found.values())))


def _check_exists(path: Path) -> None:
    """Raise UserError with the nearest name beside the first missing part of the path."""
    if path.exists():
        return
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    parent = missing.parent
    siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    hint = closest(missing.name, siblings) or f"{parent} holds: {listing(siblings, 8) or 'nothing'}"
    raise UserError(f"{path} does not exist", "an existing file or folder", hint)
