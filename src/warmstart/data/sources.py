"""What lies at a path: class folders, IDX files, CSV, parquet, or loose images to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from warmstart.data.csv_table import open_csv
from warmstart.data.folders import find_images, open_folders
from warmstart.data.idx import idx_files, open_idx
from warmstart.data.samples import FilePixels, Samples, Source
from warmstart.data.table_files import parquet_files
from warmstart.data.tables import open_parquet
from warmstart.errors import UserError, closest, listing

_PACKED = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"))


def open_source(path: str | Path, allow_single_class: bool = False) -> Source:
    """Detect and list a labelled data set; no image is decoded.

    Raises UserError where the path, the folders or the files are not what a data set needs.
    """
    root = Path(path).expanduser()
    _check_exists(root)
    source = _open_folder(root) if root.is_dir() else _open_file(root)
    if len(source.classes) < 2 and not allow_single_class:
        only = root / source.classes[0]
        deeper = only.is_dir() and any(path.is_dir() for path in only.iterdir())
        raise UserError(
            f"{root} has one class only: {only.name}",
            "at least two classes",
            f"if the data lie one level deeper: --data {only}" if deeper else "",
        )
    return source


def _open_folder(root: Path) -> Source:
    if files := idx_files(root):
        return open_idx(root, files)
    for folder in (root, root / "data"):  # Hugging Face keeps the files in data/
        if folder.is_dir() and (tables := parquet_files(folder)):
            return open_parquet(tables, root.absolute().name)
    return open_folders(root)


def _open_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return open_csv(path)
    if suffix == ".parquet":
        return open_parquet({path: None}, path.name)
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
    return Samples(tuple(found), targets, FilePixels(tuple(found.values())))


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
