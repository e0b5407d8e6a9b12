"""Class folders as they were collected: at any depth, some empty, with loose files beside them; see also folders.py."""

from __future__ import annotations

from pathlib import Path

from warmstart.data.decode import IMAGE_SUFFIXES
from warmstart.data.folders import (
    Found,
    find_images,
    fingerprint_of,
    passed_over,
    samples_of,
    split_folders_of,
    subfolders,
)
from warmstart.data.samples import Source, printable
from warmstart.errors import UserError, listing


def open_raw_folders(root: Path, innermost: bool = False) -> Source:
    """The class of an image is the first folder below `root`, or, `innermost`, the one that holds the image.

    Split folders are no classes, and a folder that holds nothing but one folder of folders is passed through. Ids are
    paths below `root`. What is left out (loose images, empty class folders) is in the notes.

    Raises UserError where no image lies in a folder.
    """
    top = _unwrapped(root)
    homes = split_folders_of(top) or {"all": top}
    found = {split: find_images(home) for split, home in homes.items()}
    entries: dict[str, list[tuple[Path, str]]] = {split: [] for split in homes}
    deeper = []
    for split, home in homes.items():
        for path in found[split].images:
            folders = path.relative_to(home).parts[:-1]
            if folders:
                entries[split].append((path, folders[-1 if innermost else 0]))
            if len(folders) > 1 and not innermost:
                deeper.append(path.relative_to(home).as_posix())
    classes = sorted({name for rows in entries.values() for _, name in rows})
    if not classes:
        raise UserError(
            f"{root} holds {sum(len(each.images) for each in found.values())} images, and none in a class folder",
            "folders named like the classes (cat/1.jpg), or a CSV file of path,label",
            f"look at {top}",
        )
    number = {name: code for code, name in enumerate(classes)}
    splits = {
        split: samples_of([(path, number[name]) for path, name in rows], root)
        for split, rows in entries.items()
        if rows
    }
    notes = [] if top == root else [f"the class folders are in {top.relative_to(root).as_posix()}"]
    notes += _left_out(homes, found) + passed_over(list(found.values()))
    if deeper:
        notes.append(
            f"{len(deeper)} images lie deeper ({deeper[0]}): the class is the first folder, "
            f"{Path(deeper[0]).parts[0]}; --class-folder last takes the one that holds the image"
        )
    names = tuple(map(printable, classes))
    return Source(names, splits, fingerprint_of(splits.values()), tuple(map(printable, notes)))


def _unwrapped(root: Path) -> Path:
    """Below folders that hold one folder of folders only, as an archive often does."""
    top = root
    while len(inside := subfolders(top)) == 1 and not split_folders_of(top):
        holds_images = any(path.suffix.lower() in IMAGE_SUFFIXES for path in inside[0].iterdir())
        if holds_images or not subfolders(inside[0]):
            break
        top = inside[0]
    return top


def _left_out(homes: dict[str, Path], found: dict[str, Found]) -> list[str]:
    """Notes on images outside of class folders, and on folders without any."""
    loose, empty = [], []
    for split, home in homes.items():
        places = [path.relative_to(home).parts for path in found[split].images]
        loose += [parts[0] for parts in places if len(parts) == 1]
        filled = {parts[0] for parts in places}
        empty += [folder.name for folder in subfolders(home) if folder.name not in filled]
    notes = []
    if loose:
        notes.append(f"{len(loose)} images lie in no class folder and are left out: {listing(loose, 4)}")
    if empty:
        notes.append(f"folders without images are left out: {listing(dict.fromkeys(empty))}")
    return notes
