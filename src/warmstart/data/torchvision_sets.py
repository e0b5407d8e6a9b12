"""torchvision's own data sets by name: `torchvision:FashionMNIST`, `torchvision:EMNIST/letters@ROOT`.

Only sets for classification are here, read by torchvision's classes from files that they check.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from warmstart.config.places import TORCHVISION, split_place
from warmstart.data.labels import short_names
from warmstart.data.samples import ArrayPixels, FilePixels, Pixels, Samples, Source
from warmstart.errors import UserError, closest, listing


class _Set(NamedTuple):
    """Our split -> arguments of torchvision's class; `variant` is the argument that NAME/VARIANT sets."""

    splits: Mapping[str, Mapping[str, Any]]
    variant: str | None = None
    variants: tuple[str, ...] = ()  # the first is the default, unless it is empty


def _flags(variant: str | None = None, variants: tuple[str, ...] = ()) -> _Set:
    return _Set({"train": {"train": True}, "test": {"train": False}}, variant, variants)


def _words(variant: str | None = None, variants: tuple[str, ...] = (), **splits: str) -> _Set:
    return _Set({name: {"split": word} for name, word in splits.items()}, variant, variants)


_WHOLE = _Set({"all": {}})
_TWO = _words(train="train", test="test")
_THREE = _words(train="train", val="val", test="test")
_EMNIST = ("", "byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_SETS = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _flags()),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"), _TWO),
    **dict.fromkeys(("Flowers102", "RenderedSST2"), _THREE),
    **dict.fromkeys(("EuroSAT", "SEMEION", "SUN397"), _WHOLE),
    "CLEVRClassification": _words(train="train", val="val"),
    "Country211": _words(train="train", val="valid", test="test"),
    "DTD": _words("partition", tuple(map(str, range(1, 11))), train="train", val="val", test="test"),
    "EMNIST": _flags("split", _EMNIST),
    "FGVCAircraft": _words(
        "annotation_level", ("variant", "family", "manufacturer"), train="train", val="val", test="test"
    ),
    "ImageNet": _words(train="train", val="val"),
    "Imagenette": _words("size", ("full", "320px", "160px"), train="train", val="val"),
    "OxfordIIITPet": _words(train="trainval", test="test"),
    "Places365": _words(train="train-standard", val="val"),
}
_NO_DOWNLOAD = ("ImageNet", "StanfordCars")  # whose files torchvision does not fetch


def default_root() -> Path:
    """Where data sets lie that no root was given for: `$XDG_CACHE_HOME/warmstart/data`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmstart" / "data"


def open_torchvision(place: str, download: bool = False) -> Source:
    """The splits of a set as torchvision gives them; pixels of sets that are arrays stay arrays.

    Raises UserError for an unknown name or variant, and where the files are not there or are broken.
    """
    title, folder = split_place(place)
    name, chosen, arguments = _chosen(title)
    root = default_root() if folder is None else Path(folder).expanduser()
    if download:
        root.mkdir(parents=True, exist_ok=True)
    from torchvision import datasets

    make = partial(getattr(datasets, name), root=str(root), **arguments)
    found = {split: _load(make, place, root, own, download) for split, own in chosen.splits.items()}
    read = {split: _read(data, split, root) for split, data in found.items()}
    names = _class_names(next(iter(found.values())), [targets for targets, _, _ in read.values()])
    kept = sorted(set(np.concatenate([np.unique(targets) for targets, _, _ in read.values()]).tolist()))
    code = np.full(len(names), -1, dtype=np.int64)
    code[kept] = np.arange(len(kept))
    splits = {split: Samples(ids, code[targets], pixels) for split, (targets, ids, pixels) in read.items()}
    notes = [f"{title}: torchvision's files in {root}"]
    if empty := [names[number] for number in range(len(names)) if code[number] < 0]:
        notes.append(f"{title}: left out classes without any image: {listing(empty)}")
    return Source(tuple(names[number] for number in kept), splits, _fingerprint(splits), tuple(notes))


def _chosen(title: str) -> tuple[str, _Set, dict[str, Any]]:
    """(torchvision's name, its set, the arguments of its variant)."""
    asked, _, variant = title.partition("/")
    by_name = {name.lower(): name for name in _SETS}
    if asked.lower() not in by_name:
        hint = closest(asked.lower(), by_name)
        for lower, name in by_name.items():
            hint = hint.replace(f"'{lower}'", repr(name))
        raise UserError(
            f"{TORCHVISION}{asked} is no data set of torchvision for classification",
            listing(sorted(_SETS), len(_SETS)),
            hint,
        )
    name = by_name[asked.lower()]
    chosen = _SETS[name]
    variant = variant or next(iter(chosen.variants), "")
    options = list(filter(None, chosen.variants))
    if variant not in options and (variant or options):
        what = f"has no variant {variant!r}" if variant else "needs a variant"
        expected = f"{TORCHVISION}{name}"
        if options:
            expected += f"/VARIANT, where VARIANT is one of {listing(options)}"
        raise UserError(f"{TORCHVISION}{name} {what}", expected, closest(variant, options))
    value: Any = int(variant) if variant.isdigit() else variant
    return name, chosen, {} if chosen.variant is None else {chosen.variant: value}


def _load(make: partial[Any], place: str, root: Path, own: Mapping[str, Any], download: bool) -> Any:
    name = make.func.__name__
    fetch = {"download": True} if download and name not in _NO_DOWNLOAD else {}
    if not fetch and name == "SEMEION":
        fetch = {"download": False}  # which this one class would do unasked
    try:
        return make(**own, **fetch)
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split("You can use download=True")[0].split()).rstrip(". ")
        fix = f"fetch it: add --download (to {root})"
        if isinstance(error, ImportError) or "pip install" in reason:
            fix = "pip install scipy"
        elif name in _NO_DOWNLOAD:
            fix = f"torchvision does not fetch this one: put its files there by hand (torchvision.datasets.{name})"
        elif fetch:
            fix = "look at the network and the free space, then try again"
        raise UserError(
            f"{place}: {reason}", f"the files as torchvision lays them out, below {root}", fix
        ) from error


def _read(data: Any, split: str, root: Path) -> tuple[np.ndarray, tuple[str, ...], Pixels]:
    """int64 targets (N,), ids and pixels of one split, from whatever attributes its class has."""
    for attribute in ("_samples", "samples", "imgs"):
        if (pairs := getattr(data, attribute, None)) is not None:
            return _of_files([path for path, _ in pairs], [label for _, label in pairs], root)
    for attribute in ("_image_files", "_images"):
        if (paths := getattr(data, attribute, None)) is not None:
            return _of_files(paths, data._labels, root)
    images = np.asarray(data.data)
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:  # SVHN and STL10: channels first
        images = images.transpose(0, 2, 3, 1)
    labels = np.asarray(data.targets if hasattr(data, "targets") else data.labels)
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST tells the writer of the digit besides
    ids = tuple(f"{split}/{number:05d}" for number in range(len(images)))
    return labels.astype(np.int64), ids, ArrayPixels(images)


def _of_files(paths: list[Any], labels: list[int], root: Path) -> tuple[np.ndarray, tuple[str, ...], Pixels]:
    rows = sorted((Path(path).relative_to(root).as_posix(), number) for number, path in enumerate(paths))
    targets = np.array([labels[number] for _, number in rows], dtype=np.int64)
    return targets, tuple(name for name, _ in rows), FilePixels(tuple(root / name for name, _ in rows))


def _class_names(data: Any, targets: list[np.ndarray]) -> list[str]:
    """torchvision's names."""
    found = getattr(data, "classes", None)
    if found is None:
        return [str(number) for number in range(1 + max(int(codes.max()) for codes in targets))]
    return short_names([(name,) if isinstance(name, str) else tuple(map(str, name)) for name in found])


def _fingerprint(splits: dict[str, Samples]) -> str:
    digest = hashlib.sha256()
    for split, samples in splits.items():
        digest.update("\n".join([split, *samples.ids]).encode())
        digest.update(samples.targets.tobytes())
        if isinstance(samples.pixels, ArrayPixels):
            digest.update(np.ascontiguousarray(samples.pixels.array).data)
        elif isinstance(samples.pixels, FilePixels):
            digest.update(repr([path.stat().st_size for path in samples.pixels.paths]).encode())
    return digest.hexdigest()
