"""Class folders: root/train/cat/1.jpg with split folders, or root/cat/1.jpg without."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from warmstart.data.decode import IMAGE_SUFFIXES
from warmstart.data.samples import FilePixels, Samples, Source, printable
from warmstart.errors import UserError, closest, listing

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_HIDDEN = frozenset(("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"))
# What `prepare folders` writes beside its split folders.
PREPARED, ORIGINS, UNREADABLE = "preparation.json", "origins.csv", "unreadable.csv"
_OURS = frozenset((PREPARED, ORIGINS, UNREADABLE))
_LAYOUT = "class folders (cat/1.jpg, dog/2.jpg), or split folders of class folders (train/cat/1.jpg)"


class Found(NamedTuple):
    """What lies below a folder: images in sorted order, and the names of what was passed over."""

    images: list[Path]
    others: list[str]
    hidden: list[str]


def find_images(folder: Path) -> Found:
    """All images below `folder`, links followed; the order does not depend on the file system."""
    images: list[Path] = []
    others: list[str] = []
    hidden: list[str] = []
    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = Path(parent).resolve()
        if place in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(place)
        hidden += [name for name in [*folders, *files] if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            if not is_hidden(name):
                path = Path(parent, name)
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(path)
                else:
                    others.append(name)
    return Found(sorted(images, key=lambda path: path.relative_to(folder).as_posix()), others, hidden)


def open_folders(root: Path) -> Source:
    """Splits train, val, test as far as they are there; a single one, or none, becomes `all`."""
    notes: list[str] = []
    split_folders = split_folders_of(root)
    if split_folders:
        strangers = [folder.name for folder in subfolders(root) if folder not in split_folders.values()]
        notes += [f"{root.name}/{name} is not a split folder and was ignored" for name in strangers]
    else:
        split_folders = {"all": root}
    tables = {split: _classes_of(folder) for split, folder in split_folders.items()}
    classes = _shared_classes(tables, split_folders)
    listings, passed = {}, []
    for split, table in tables.items():
        found = {name: find_images(table[name]) for name in classes}
        check_filled(found, table)
        listings[split] = [
            (path, target) for target, name in enumerate(classes) for path in found[name].images
        ]
        passed += [*found.values(), _loose(split_folders[split])]
    if len(listings) == 1 and "all" not in listings:
        split, listings = next(iter(listings)), {"all": next(iter(listings.values()))}
        notes.append(f"{root.name} has a {split} folder only: its images are split")
    splits = {split: samples_of(entries, root) for split, entries in listings.items()}
    notes += passed_over([*passed, _loose(root)] if "all" not in split_folders else passed)
    names = tuple(map(printable, classes))
    return Source(names, splits, fingerprint_of(splits.values()), tuple(map(printable, notes)))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _loose(folder: Path) -> Found:
    """Files directly in a folder that should hold only folders, and its hidden entries."""
    entries = (path for path in folder.iterdir() if path.name not in _OURS)
    names = sorted(path.name for path in entries if is_hidden(path.name) or path.is_file())
    hidden = [name for name in names if is_hidden(name)]
    return Found([], [name for name in names if not is_hidden(name)], hidden)


def split_folders_of(root: Path) -> dict[str, Path]:
    """Split -> folder, in the order train, val, test; empty where the folders are classes."""
    folders = subfolders(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    words = {SPLIT_WORDS[folder.name.lower()] for folder in named}
    strangers = len(folders) - len(named)
    if "train" not in words and strangers:
        return {}  # a class may be called "test"
    if len(named) == 1 and strangers > 1 and not subfolders(named[0]):
        return {}  # car, plane and train are classes; a train folder of loose images is an error below
    splits: dict[str, Path] = {}
    for split in ("train", "val", "test"):
        same = [folder for folder in named if SPLIT_WORDS[folder.name.lower()] == split]
        if len(same) > 1:
            names = listing(folder.name for folder in same)
            raise UserError(f"{root} has several {split} folders: {names}", "one", "join or rename them")
        if same:
            splits[split] = same[0]
    return splits


def _classes_of(folder: Path) -> dict[str, Path]:
    """Class name -> folder. Raises UserError where there are none, and where they are no classes."""
    table = {path.name: path for path in subfolders(folder)}
    if not table:
        num_images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
        if num_images:
            raise UserError(
                f"{folder} holds {num_images} images but no class folders",
                _LAYOUT,
                "sort the images into one folder per class; unlabelled images belong outside the data folder",
            )
        inside = listing(sorted(path.name for path in folder.iterdir()), 6)
        what = f"holds no images: {inside}" if inside else "is empty"
        raise UserError(
            f"{folder} {what}", f"{_LAYOUT}, IDX files, CSV or parquet", "check the path given as --data"
        )
    return table


def _shared_classes(tables: dict[str, dict[str, Path]], folders: dict[str, Path]) -> tuple[str, ...]:
    """The class names, sorted. Raises UserError naming every class that a split lacks."""
    union = sorted(set().union(*tables.values()))
    problems = []
    for split, table in tables.items():
        for name in union:
            if name in table:
                continue
            owners = listing(folders[other].name for other in tables if name in tables[other])
            own = [other for other in table if any(other not in rest for rest in tables.values())]
            problems.append(
                f"{folders[split].name} has no {name!r} ({owners} has). {closest(name, own)}".strip()
            )
    if problems:
        raise UserError(
            "class folders differ between splits: " + " ".join(problems),
            "the same class folders in every split",
            "rename, move or remove the folders that differ",
        )
    return tuple(union)


def check_filled(found: dict[str, Found], table: dict[str, Path]) -> None:
    """UserError naming the folders (`table`, by class) in which no image was found."""
    empty = [table[name] for name, inside in found.items() if not inside.images]
    if empty:
        others = listing((name for folder in empty for name in find_images(folder).others), 4)
        raise UserError(
            f"class folders without images: {listing(empty)}" + (f" (found {others})" if others else ""),
            f"at least one image in each; known endings are {' '.join(sorted(IMAGE_SUFFIXES))}",
            "fill them, or remove them from every split",
        )


def samples_of(entries: list[tuple[Path, int]], root: Path) -> Samples:
    """Images with their classes, in the order of their paths below `root`, which are their ids."""
    rows = sorted((path.relative_to(root).as_posix(), target, path) for path, target in entries)
    targets = np.array([target for _, target, _ in rows], dtype=np.int64)
    ids = tuple(printable(name) for name, _, _ in rows)
    return Samples(ids, targets, FilePixels(tuple(path for *_, path in rows)))


def passed_over(passed: list[Found]) -> list[str]:
    """The notes on what is hidden and on what is no image."""
    notes = []
    hidden = [name for found in passed for name in found.hidden]
    others = [name for found in passed for name in found.others]
    if hidden:
        notes.append(f"ignored {len(hidden)} hidden: {listing(dict.fromkeys(hidden), 4)}")
    if others:
        notes.append(
            f"ignored {len(others)} files that are not images in class folders: {listing(dict.fromkeys(others), 4)}"
        )
    return notes


def fingerprint_of(splits: Iterable[Samples]) -> str:
    """By the ids and sizes of files."""
    rows = []
    for samples in splits:
        assert isinstance(samples.pixels, FilePixels)
        sizes = (path.stat().st_size for path in samples.pixels.paths)
        rows += [f"{name}\0{size}\n" for name, size in zip(samples.ids, sizes, strict=True)]
    return hashlib.sha256("".join(sorted(rows)).encode("utf-8", "surrogateescape")).hexdigest()
