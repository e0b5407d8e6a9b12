"""Folders of images beside folders of index masks: train/images and train/masks, images/train and masks/train, or
images and masks. A mask bears its image's name, with another ending, or with _mask, _labelIds and the like."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from warmstart.data.decode import IMAGE_SUFFIXES
from warmstart.data.folders import find_images, split_folders_of, subfolders
from warmstart.data.mask_settings import Legend, MaskSettings, read_legend
from warmstart.data.masks import MaskPixels
from warmstart.data.samples import FilePixels, Samples, Source, printable
from warmstart.errors import UserError, closest, listing

_IMAGE_WORDS = frozenset(("images", "image", "imgs", "img", "jpegimages", "leftimg8bit"))
_MASK_WORDS = frozenset(
    ("masks", "mask", "labels", "annotations", "annotation", "annots", "segmentationclass", "gtfine")
)
LAYOUTS = "train/images and train/masks, images/train and masks/train, or images and masks"
_MASK_ENDING = re.compile(
    r"[_-](?:gtFine[_-])?(?:masks?|labels?|labelIds|labelTrainIds|seg|segmentation|annotation|gt|L)$"
)
_IMAGE_ENDING = re.compile(r"[_-](?:leftImg8bit|image|img)$")

Homes = dict[str, tuple[Path, Path]]  # split, or `all` -> the folder of images, that of masks


def find_mask_folders(root: Path, place: str | None) -> tuple[Homes, list[str]]:
    """Where images and masks lie, with notes; empty where `root` is no segmentation data set.

    `place` (`--masks`) is the name of the folders of masks, or a path. Raises UserError where it is nothing.
    """
    words = _MASK_WORDS if place is None else frozenset((place.lower(),))
    if pair := _beside(root, words):
        return _by_split(*pair)
    splits = split_folders_of(root)
    found = {split: _beside(folder, words) for split, folder in splits.items()}
    if any(found.values()):
        lacking = [split for split, pair in found.items() if pair is None]
        return {split: pair for split, pair in found.items() if pair}, _left_out(root, lacking)
    if place is None:
        return {}, []
    for masks in (Path(place).expanduser(), root / place):
        if masks.is_dir():
            images = [folder for folder in subfolders(root) if folder.name.lower() in _IMAGE_WORDS]
            return _by_split(images[0] if images else root, masks)
    names = [folder.name for home in (root, *splits.values()) for folder in subfolders(home)]
    raise UserError(
        f"--masks {place}: there is no such folder, nor one of this name beside images in {root}",
        f"a folder of masks, as in {LAYOUTS}",
        closest(place, names),
    )


def open_mask_folders(root: Path, homes: Homes, settings: MaskSettings) -> Source:
    """Images paired with masks by their names. Raises UserError naming all that have no partner."""
    legend = read_legend(settings, root)
    problems: list[UserError] = []
    splits, notes = {}, [*legend.notes]
    for split, (images, masks) in homes.items():
        pairs, others = _pairs(images, masks, problems)
        notes += others
        splits[split] = _samples(root, pairs, legend)
    if problems:
        raise UserError.of_problems(problems, str(root))
    if len(splits) == 1 and "all" not in splits:
        split, splits = next(iter(splits)), {"all": next(iter(splits.values()))}
        notes.append(f"{root.name} has masks for {split} only: its images are split")
    fingerprint = hashlib.sha256(legend.stamp())
    for samples in splits.values():
        fingerprint.update(_states(samples, root))
    return Source(
        legend.names or (), splits, fingerprint.hexdigest(), tuple(map(printable, notes)), legend.ignore
    )


def _beside(folder: Path, words: frozenset[str]) -> tuple[Path, Path] | None:
    """The folder of images and that of masks in `folder`. Raises UserError where several may be meant."""
    inside = subfolders(folder)
    images = [path for path in inside if path.name.lower() in _IMAGE_WORDS]
    named = [path for path in inside if path.name.lower() in words and path not in images]
    if not images or not named:
        return None
    masks = [path for path in named if find_images(path).images]
    if not masks:
        others = listing(sorted(find_images(named[0]).others), 4) or "nothing"
        raise UserError(
            f"{listing(named)} holds no masks (found {others})",
            f"masks as images, known endings are {' '.join(sorted(IMAGE_SUFFIXES))}",
            "boxes and polygons are no masks; for classes, point --data at images sorted by class",
        )
    for several, flag in ((images, ""), (masks, "--masks NAME")):
        if len(several) > 1:
            names = listing(path.name for path in several)
            raise UserError(f"{folder} holds {names}", "one folder of images and one of masks", flag)
    return images[0], masks[0]


def _by_split(images: Path, masks: Path) -> tuple[Homes, list[str]]:
    """One pair of folders, or one per split folder inside them."""
    splits, theirs = split_folders_of(images), split_folders_of(masks)
    if not splits or not theirs:
        return {"all": (images, masks)}, []
    homes = {split: (folder, theirs[split]) for split, folder in splits.items() if split in theirs}
    return homes, _left_out(images.parent, [split for split in splits if split not in theirs])


def _left_out(root: Path, splits: list[str]) -> list[str]:
    """The note on test images without masks. Raises UserError for other splits without any."""
    needed = [split for split in splits if split != "test"]
    if needed:
        raise UserError(
            f"{root}: there are no masks for {listing(needed)}", f"masks for every image, as in {LAYOUTS}"
        )
    return [f"{root.name}: test has no masks and is left out"] if splits else []


def _pairs(images: Path, masks: Path, problems: list[UserError]) -> tuple[list[tuple[Path, Path]], list[str]]:
    """(image, mask) of one pair of folders, and notes on other files; what has no partner becomes a problem."""
    found, marked = find_images(images), find_images(masks)
    inside = [path for path in found.images if images == masks or masks not in path.parents]
    by_name, twice = _named(masks, marked.images, exact=True)
    by_stem, alike = _named(masks, marked.images, exact=False)
    pairs, alone, stems = [], [], set()
    for image in inside:
        name = image.relative_to(images).with_suffix("").as_posix()
        stem = _IMAGE_ENDING.sub("", name)
        partner = by_name.get(name) or by_stem.get(name) or by_stem.get(stem)
        stems |= {name, stem}
        if partner is None:
            alone.append(image.relative_to(images).as_posix())
        else:
            pairs.append((image, partner))
    used = {mask for _, mask in pairs}
    unused = [mask.relative_to(masks).as_posix() for mask in marked.images if mask not in used]
    strangers = [name for name in unused if not _belongs(name, stems)]
    several = [*twice, *(name for name in alike if name not in by_name and name in stems)]
    problems += _problems((images, masks), (len(inside), len(marked.images)), alone, strangers, several)
    passed = [*found.others, *marked.others, *(name for name in unused if name not in strangers)]
    return pairs, [f"ignored {len(passed)} files that are neither: {listing(passed, 4)}"] if passed else []


def _belongs(name: str, stems: set[str]) -> bool:
    """Whether a file is about an image that has a mask already, such as its coloured mask (a_color.png)."""
    stem = name
    while (cut := max(stem.rfind("_"), stem.rfind("-"))) > 0:
        stem = stem[:cut]
        if stem in stems:
            return True
    return False


def _problems(
    homes: tuple[Path, Path],
    nums: tuple[int, int],
    alone: list[str],
    strangers: list[str],
    several: list[str],
) -> list[UserError]:
    """What keeps images and masks from being pairs."""
    images, masks = homes
    found = []
    if several:
        found.append(
            UserError(
                f"{masks} holds several masks for {len(several)} images: {listing(several, 5)}",
                "one mask for every image",
                "keep those of one kind",
            )
        )
    if alone:
        found.append(
            UserError(
                f"{len(alone)} of {nums[0]} images in {images} have no mask: {listing(alone, 5)}",
                "a mask of the same name for every image; its ending may differ",
                "add masks, or move these images away",
            )
        )
    if strangers:
        found.append(
            UserError(
                f"{len(strangers)} of {nums[1]} masks in {masks} have no image: {listing(strangers, 5)}",
                "an image of the same name for every mask",
                "add the images, or move these masks away",
            )
        )
    if not nums[0]:
        found.append(UserError(f"{images} holds no images", LAYOUTS))
    return found


def _named(folder: Path, masks: list[Path], exact: bool) -> tuple[dict[str, Path], list[str]]:
    """(name without ending -> mask, names that several have); not `exact`: without _mask and the like."""
    table: dict[str, Path] = {}
    twice = []
    for mask in masks:
        name = mask.relative_to(folder).with_suffix("").as_posix()
        if not exact:
            name = _MASK_ENDING.sub("", name)
        if table.setdefault(name, mask) != mask:
            twice.append(name)
    return table, twice


def _samples(root: Path, pairs: list[tuple[Path, Path]], legend: Legend) -> Samples:
    rows = sorted((image.relative_to(root).as_posix(), image, mask) for image, mask in pairs)
    targets = np.zeros((len(rows), len(legend.names or ())), dtype=np.uint8)
    masks = MaskPixels(FilePixels(tuple(mask for *_, mask in rows)), legend.coding)
    images = FilePixels(tuple(image for _, image, _ in rows))
    return Samples(tuple(printable(name) for name, *_ in rows), targets, images, None, masks)


def _states(samples: Samples, root: Path) -> bytes:
    """Names and sizes of images and masks, for the fingerprint."""
    assert isinstance(samples.pixels, FilePixels) and isinstance(samples.masks, MaskPixels)
    files = samples.masks.files
    assert isinstance(files, FilePixels)
    rows = [
        f"{name}\0{image.stat().st_size}\0{mask.name}\0{mask.stat().st_size}\n"
        for name, image, mask in zip(samples.ids, samples.pixels.paths, files.paths, strict=True)
    ]
    return "".join(rows).encode("utf-8", "surrogateescape")
