"""Tiny ImageNet as it is distributed (Stanford CS231N): 200 classes, 110,000 labelled images of 64 x 64 pixels.

wnids.txt, words.txt          the classes (n01443537), and what WordNet calls each of its own
train/WNID/images/*.JPEG      beside WNID_boxes.txt, which is not read
val/images/*.JPEG             with val/val_annotations.txt: image, wnid and a box in each line
test/images/*.JPEG            without labels
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from warmstart.data.folders import check_filled, find_images, fingerprint_of, samples_of, subfolders
from warmstart.data.labels import short_names
from warmstart.data.samples import Source, printable
from warmstart.data.text_files import read_text
from warmstart.errors import UserError, listing

_CLASSES, _WORDS, _ANNOTATIONS = "wnids.txt", "words.txt", "val_annotations.txt"
_UNPACK = "unpack tiny-imagenet-200.zip again"

Entries = list[tuple[Path, int]]  # an image and its class


def is_tiny_imagenet(root: Path) -> bool:
    listed = (root / _CLASSES).is_file() or (root / "val" / _ANNOTATIONS).is_file()
    return listed and (root / "train").is_dir()


def open_tiny_imagenet(root: Path) -> Source:
    """Splits train and val; classes in the order of their wnids, as torchvision's ImageFolder numbers them.

    val may also be sorted into val/WNID, as many programs leave it. Raises UserError naming all that is wrong: wnids
    that are not listed, classes without images, images of val without a line, lines without an image.
    """
    wnids = _wnids(root)
    problems: list[UserError] = []
    splits = {"train": _in_folders(root / "train", wnids, problems)}
    annotations = root / "val" / _ANNOTATIONS
    text = read_text(annotations, "image, wnid and a box in each line") if annotations.is_file() else ""
    if text:
        splits["val"] = _annotated(root, text, wnids, problems)
    elif (root / "val").is_dir() and any(folder.name in wnids for folder in subfolders(root / "val")):
        splits["val"] = _in_folders(root / "val", wnids, problems)
    else:
        expected = "a line for each image in val/images: val_0.JPEG, a tab, its wnid"
        problems.append(UserError(f"val/{_ANNOTATIONS} is missing or empty", expected, _UNPACK))
    if problems:
        raise UserError.of_problems(problems, str(root))
    samples = {split: samples_of(entries, root) for split, entries in splits.items()}
    names, note = _names(root, wnids)
    stamp = hashlib.sha256(f"{fingerprint_of(samples.values())}\n{text}".encode())
    notes = (f"{root.name}: Tiny ImageNet's own layout; its boxes are not read", note, *_unlabelled(root))
    return Source(names, samples, stamp.hexdigest(), tuple(map(printable, notes)))


def _wnids(root: Path) -> dict[str, int]:
    """wnid -> class, sorted."""
    path = root / _CLASSES
    if not path.is_file():
        raise UserError(f"{root}: {_CLASSES} is missing", "the wnid of each class in a line", _UNPACK)
    wnids = sorted(set(read_text(path, "a wnid in each line").split()))
    if len(wnids) < 2:
        raise UserError(f"{path} lists {len(wnids)} classes", "at least two", _UNPACK)
    return {wnid: number for number, wnid in enumerate(wnids)}


def _in_folders(home: Path, wnids: dict[str, int], problems: list[UserError]) -> Entries:
    """The images below home/WNID."""
    table = {folder.name: folder for folder in subfolders(home)}
    strangers = [folder for name, folder in table.items() if name not in wnids]
    if unknown := [folder.name for folder in strangers if find_images(folder).images]:
        problems.append(
            UserError(
                f"{home.name} has images in folders that {_CLASSES} does not list: {listing(unknown)}",
                f"one folder for each of its {len(wnids)} wnids",
                f"add them to {_CLASSES}, or remove the folders",
            )
        )
    if lacking := [wnid for wnid in wnids if wnid not in table]:
        problems.append(
            UserError(
                f"{home.name} has no folder for {listing(lacking)}",
                f"one for each wnid of {_CLASSES}",
                f"remove these lines from {_CLASSES} if the classes are left out on purpose, else {_UNPACK}",
            )
        )
    found = {name: find_images(folder) for name, folder in table.items() if name in wnids}
    check_filled(found, table)
    return [(path, wnids[name]) for name, inside in found.items() for path in inside.images]


def _annotated(root: Path, text: str, wnids: dict[str, int], problems: list[UserError]) -> Entries:
    """The images of val/images, each with the wnid of its line."""
    home, expected = root / "val" / "images", "an image, a tab, and its wnid in each line"
    lines = [(number, line.split("\t")) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    images = {path.name: path for path in find_images(home).images} if home.is_dir() else {}
    wnid_of = {cells[0].strip(): cells[1].strip() for _, cells in lines if len(cells) > 1}

    def report(what: str, rows: list[str], fix: str = _UNPACK) -> None:
        if rows:
            problems.append(UserError(f"{_ANNOTATIONS}: {what} {listing(rows, 5)}", expected, fix))

    report("no wnid in line", [str(number) for number, cells in lines if len(cells) < 2])
    strange = [f"{name} ({wnid})" for name, wnid in wnid_of.items() if wnid not in wnids]
    report(f"wnids that {_CLASSES} does not list:", strange, f"correct the lines, or {_CLASSES}")
    told = {(cells[0].strip(), cells[1].strip()) for _, cells in lines if len(cells) > 1}
    report("several wnids for", sorted(name for name, wnid in told if wnid_of[name] != wnid))
    report("no line for the images", [name for name in images if name not in wnid_of])
    report("val/images lacks", [name for name in wnid_of if name not in images])
    return [(path, wnids[wnid_of[name]]) for name, path in images.items() if wnid_of.get(name, "") in wnids]


def _names(root: Path, wnids: dict[str, int]) -> tuple[tuple[str, ...], str]:
    """What the classes are called, and the note on it: by the first of their words, or by their wnid."""
    path = root / _WORDS
    if not path.is_file():
        return tuple(wnids), f"{root.name}: {_WORDS} is missing, so the classes are called by their wnids"
    rows = (line.partition("\t") for line in read_text(path, "a wnid, a tab, and its words").splitlines())
    words = {wnid: told.strip() for wnid, _, told in rows if wnid in wnids and told.strip()}
    names = short_names([tuple(words.get(wnid, wnid).split(", ")) for wnid in wnids])
    names = [
        name if names.count(name) == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    ]
    wnid, name = next(iter(wnids)), names[0]
    return tuple(map(printable, names)), f"{root.name}: class names from {_WORDS}: {wnid} is {name!r}"


def _unlabelled(root: Path) -> list[str]:
    """The note on the images of test."""
    home = root / "test"
    num = len(find_images(home).images) if home.is_dir() else 0
    return [f"{root.name}: the {num} images of test have no labels and are left out"] if num else []
