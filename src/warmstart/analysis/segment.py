"""`predict` of a segmenting model: a mask and a picture of it for every image, as files."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from os.path import commonpath, normpath
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np

from warmstart.analysis.overlays import write_legend, write_mask, write_overlay
from warmstart.analysis.predict import closing, readable_samples, timing
from warmstart.config.io import from_dict
from warmstart.console import progress, table
from warmstart.data.geometry import MaskRules
from warmstart.data.mask_settings import MaskSettings
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.masks import WINDOWS_AT_ONCE, Looks, predict_mask
from warmstart.inference.restore import Restored
from warmstart.shown import Shown

MASKS, OVERLAYS, LEGEND = "masks", "overlays", "legend.png"
_NUM_SHOWN, _NUM_NAMED, _NUM_PICTURES = 20, 3, 4
_LARGEST_SCALE = 8


@dataclass(frozen=True)
class MaskPrediction:
    """One image: its files, and the share of its pixels by class, largest first."""

    id: str
    mask: str
    overlay: str
    shares: dict[str, float]


@dataclass(frozen=True)
class MaskPredictions(Shown):
    """What was predicted, and the images that could not be read: (id, reason)."""

    run: str | None
    model: str
    folder: str
    predictions: list[MaskPrediction]
    unreadable: tuple[tuple[str, str], ...]
    seconds: float  # from the files to the files

    def to_json(self) -> dict[str, Any]:
        unreadable = [{"id": name, "reason": reason} for name, reason in self.unreadable]
        rows = [asdict(one) for one in self.predictions]
        return {
            "run": self.run,
            "model": self.model,
            "num_samples": len(rows),
            **timing(self.seconds, len(rows)),
            "folder": self.folder,
            "predictions": rows,
            "unreadable": unreadable,
        }

    def text(self) -> str:
        rows = [
            (
                one.id,
                ", ".join(f"{name} {share:.0%}" for name, share in list(one.shares.items())[:_NUM_NAMED]),
            )
            for one in self.predictions[:_NUM_SHOWN]
        ]
        lines = [table("", ("image", "most pixels"), rows, left=2)]
        more = len(self.predictions) - len(rows)
        lines += [f"... and {more} more images"] if more > 0 else []
        lines += closing(self.seconds, len(self.predictions), self.unreadable)
        lines.append(f"{MASKS}, {OVERLAYS} and {LEGEND}: {self.folder}")
        return "\n".join(lines)

    @property
    def pictures(self) -> list[Path]:
        return [Path(one.overlay) for one in self.predictions[:_NUM_PICTURES]]


def segment(
    restored: Restored,
    images: list[str],
    output: str | None,
    request: tuple[int | None, str | None, bool | None],
    batch_size: int | None = None,
    workers: int = 0,
) -> MaskPredictions:
    """`predict_masks` as it was asked for: `request` is top_k, scales and flip as they were written.

    `batch_size` windows of an image go through the model at once.

    Raises:
        UserError: no folder, a number of classes per image, or scales that are no numbers above 0.
    """
    top_k, scales, flip = request
    if top_k is not None:
        raise UserError(
            f"--top-k {top_k}: {restored.built.name} gives one class per pixel",
            "a classifier",
            "leave it out",
        )
    if output is None or Path(output).suffix:
        raise UserError(
            f"{restored.built.name} gives masks, and --output names {'no folder' if output is None else 'a file'}",
            "a new folder for masks and pictures of them",
            "--output FOLDER",
        )
    mirrored = tuple(_rules(restored).mirrored(len(restored.built.classes)).tolist()) if flip else None
    looks = Looks(_numbers(scales), mirrored, at_once=batch_size or WINDOWS_AT_ONCE)
    return predict_masks(restored, images, Path(output), looks, workers)


def _numbers(scales: str | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in ("1" if scales is None else scales).split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= _LARGEST_SCALE for number in numbers):
        raise UserError(
            f"--scales {scales}", f"numbers above 0 and up to {_LARGEST_SCALE}", "for example .9,1,1.1"
        )
    return numbers


def _rules(restored: Restored) -> MaskRules:
    """Which classes change places in a mirror image: as the model was trained."""
    run = restored.reference.run
    if run is None:
        return MaskRules()
    settings = MaskSettings.of(from_dict(run.config).data)
    return settings.rules(restored.built.classes, run.resolved["data"]["ignore"])


def predict_masks(
    restored: Restored, images: list[str], folder: Path, looks: Looks, workers: int = 0
) -> MaskPredictions:
    """Write FOLDER/masks, FOLDER/overlays and the legend of files and folders of images (searched below).

    A mask has the size of its image. Images are read one at a time, whatever their number.

    Raises:
        UserError: a path that does not exist, no readable image, or a folder in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} is in use", "a new or empty folder", "choose another name")
    built = restored.built
    samples, unreadable = readable_samples(restored, images, workers)
    device = next(built.module.parameters()).device
    inputs = InputBuffer(built.preprocessing, device, built.channels_last)
    names = _file_names(samples.ids)
    found = []
    started = perf_counter()
    with progress("predicting", len(samples)) as bar:
        for number, (name, file) in enumerate(zip(samples.ids, names, strict=True)):
            image = samples.pixels.read(number)
            mask = predict_mask(built.module, image, built.preprocessing, inputs, looks, restored.native)
            target = folder / MASKS / f"{file}.png", folder / OVERLAYS / f"{file}.jpg"
            write_mask(target[0], mask)
            write_overlay(target[1], image, mask)
            found.append(MaskPrediction(name, str(target[0]), str(target[1]), _shares(mask, built.classes)))
            bar.update(number + 1)
    write_legend(folder / LEGEND, built.classes)
    run = restored.reference.run
    return MaskPredictions(
        str(run.path) if run is not None else None,
        restored.label,
        str(folder),
        found,
        unreadable,
        perf_counter() - started,
    )


def _shares(mask: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    order = [number for number in np.argsort(-counts, kind="stable").tolist() if counts[number]]
    return {classes[number]: round(float(counts[number] / mask.size), 6) for number in order}


def _file_names(ids: tuple[str, ...]) -> list[str]:
    """A path below the folder for every id: without the folders that all share, and without its suffix.

    Where two had the same name then, both keep their suffix; a file that was named in two ways gets two numbers.
    """
    paths = [Path(name).absolute() for name in ids]
    paths = [Path(normpath(path)) for path in paths]
    shared = Path(commonpath([path.parent for path in paths]))
    whole = [path.relative_to(shared).as_posix() for path in paths]
    stems = [str(PurePosixPath(name).with_suffix("")) for name in whole]
    number = Counter(stems)
    chosen = [stem if number[stem] == 1 else name for stem, name in zip(stems, whole, strict=True)]
    seen: Counter[str] = Counter()
    for place, name in enumerate(chosen):
        seen[name] += 1
        if seen[name] > 1:
            chosen[place] = f"{name}-{seen[name]}"
    assert len(set(chosen)) == len(ids), "a mask would be written over another"
    return chosen
