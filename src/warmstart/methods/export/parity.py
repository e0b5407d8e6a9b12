"""Whether what was exported answers as the model does: on real images, in a fresh process."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from warmstart.analysis.samples import open_evaluation_set
from warmstart.config.schema import DataConfig
from warmstart.data.batches import evaluation_batches
from warmstart.data.decode import to_channels
from warmstart.data.samples import Samples
from warmstart.data.store import StoredPixels
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.restore import Restored
from warmstart.methods.export import answer
from warmstart.models.build import BuiltModel
from warmstart.models.recipe import QUANTISED
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_ROUNDING = 1e-3  # of the largest logit
# A format that stores less than float32 has rounded the weights themselves: a decision in a hundred may be another.
_STORED, _OTHERS_OF_STORED = {torch.float16: 2e-2, torch.bfloat16: 1e-1}, 0.01
# Of images that the other library prepares: it weighs the pixels of a smaller image otherwise.
_OTHERS_OF_PREPARED = 0.1
# Of a model trained for int8: what lies between two whole numbers falls to either side by rounding, in every layer.
_STEPS, _LEAST_OF_STEPS = 0.3, 0.9
_LEAST_PIXELS = 0.999  # of those of masks, where ties lie along every border
_ONE = 1.001  # decision, and a little for rounding
_LAST_WORDS = 3


@dataclass(frozen=True)
class Probe:
    """Normalised images float32 (N, C, h, w), what they are, and the model's logits of them; `raw` are the same images
    as they came, uint8 (H, W, C), where they are images of one or three channels."""

    images: np.ndarray
    text: str
    logits: np.ndarray
    raw: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Parity:
    """How far the answers are apart: `difference` is the largest of logits, `same` the share of equal decisions, of
    images, of their labels or of the pixels of masks. `prepared_*` are the same of images that the other library
    prepared itself; None: it does not."""

    images: str
    num_images: int
    difference: float
    largest_logit: float
    same: float
    prepared_difference: float | None = None
    prepared_same: float | None = None

    def text(self) -> str:
        told = (
            f"{self.images}, read again in a fresh process: largest difference of logits {self.difference:.2g} "
            f"(largest logit {self.largest_logit:.3g}), decisions equal {self.same:.2%}"
        )
        if self.prepared_same is None:
            return told
        return f"{told}; images prepared by the library: {self.prepared_difference:.2g}, {self.prepared_same:.2%}"


def make_probe(restored: Restored, data: DataConfig | None, num: int, workers: int) -> Probe:
    """`num` images of the test split, else of val, spread over all of it; noise where no data are there."""
    built = restored.built
    shape = (num, built.preprocessing.num_channels, *built.preprocessing.image_size)
    run = restored.reference.run
    if run is None and data is None:
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
        return Probe(images, f"{num} images of noise (--data names real ones)", _logits(restored, images))
    chosen = open_evaluation_set(run, data, None, built)
    samples = chosen.samples[0]
    places = np.unique(np.linspace(0, len(samples) - 1, min(num, len(samples))).astype(int))
    samples = samples.subset(places)
    inputs = InputBuffer(built.preprocessing, torch.device("cpu"), channels_last=False)
    batches = evaluation_batches(samples, built.preprocessing, restored.native, len(places), workers)
    images = np.concatenate([inputs(batch.images).numpy().copy() for batch in batches])
    text = f"{len(images)} images of {chosen.split} of {chosen.path}"
    return Probe(images, text, _logits(restored, images), _raw(samples, built.preprocessing.num_channels))


def _raw(samples: Samples, num_channels: int) -> tuple[np.ndarray, ...]:
    """The images as they came: what is kept of them decoded may be smaller."""
    pixels = samples.pixels.source if isinstance(samples.pixels, StoredPixels) else samples.pixels
    if num_channels not in (1, 3):
        return ()
    return tuple(to_channels(pixels.read(place), num_channels) for place in range(len(pixels)))


@torch.no_grad()
def _logits(restored: Restored, images: np.ndarray) -> np.ndarray:
    module = copy.deepcopy(restored.built.module).to("cpu", torch.float32).eval()
    return np.concatenate(
        [module(torch.from_numpy(part)).numpy() for part in np.array_split(images, -(-len(images) // 8))]
    )


def check_parity(
    restored: Restored,
    probe: Probe,
    to: str,
    path: Path,
    told: dict[str, Any],
    stored: torch.dtype = torch.float32,
) -> Parity:
    """Read `path` in a fresh process, and compare; `told` is what a file does not say of itself, `stored` the type
    of its weights.

    Raises:
        UserError: it cannot be read, or answers otherwise; or it prepares images so that it does.
    """
    found, prepared = _answers(to, path, probe, told)
    if found.shape != probe.logits.shape:
        raise UserError(
            f"{to} of {restored.label} gives {found.shape} where the model gives {probe.logits.shape}",
            "the same answers",
            "--to safetensors holds the model as it is",
        )
    difference, same = _compare(restored, found, probe.logits)
    largest = float(np.abs(probe.logits).max())
    parity = Parity(probe.text, len(probe.images), difference, largest, same)
    tolerance, one = _STORED.get(stored, _ROUNDING), _ONE / _decisions(restored, probe.logits).size
    least = _LEAST_PIXELS if restored.built.segments else 1.0
    least = least if stored not in _STORED else 1 - max(_OTHERS_OF_STORED, one)
    if _is_quantised(restored.built):
        tolerance, least = _STEPS, _LEAST_OF_STEPS
    if not parity.difference <= tolerance * parity.largest_logit or parity.same < least:
        raise UserError(
            f"{to} of {restored.label} gives other answers, and was not kept: {parity.text()}",
            f"logits equal to {tolerance:g} of the largest, and the same decisions",
            "--to safetensors holds the model as it is",
        )
    if prepared is None:
        return parity
    difference, same = _compare(restored, prepared, probe.logits)
    parity = replace(parity, prepared_difference=difference, prepared_same=same)
    if same < 1 - max(_OTHERS_OF_PREPARED, one):
        raise UserError(
            f"{to} of {restored.label} prepares images otherwise, and was not kept: {parity.text()}",
            f"at least {1 - _OTHERS_OF_PREPARED:.0%} of the decisions, of images as they came",
            "--crop-pct 1 where they have the input's size; or --to onnx, and images as its metadata say",
        )
    return parity


def _compare(restored: Restored, found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """The largest difference of logits, and the share of equal decisions."""
    same = _decisions(restored, found) == _decisions(restored, wanted)
    return float(np.abs(found - wanted).max()), float(same.mean())


def _is_quantised(built: BuiltModel) -> bool:
    return built.recipe is not None and QUANTISED in built.recipe.kinds


def _answers(to: str, path: Path, probe: Probe, told: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits of the images, and of the raw ones where the format says how to prepare them."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(given, probe.images)
        if is_prepared := to in answer.INPUTS and bool(probe.raw):
            told = {**told, "raw": str(_write_pictures(probe.raw, Path(folder) / "raw"))}
        done = ask(to, str(path), str(given), str(found), json.dumps(told))
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-_LAST_WORDS:])
            raise UserError(
                f"what was exported cannot be read again: {last}",
                f"a file for {to}",
                "--to safetensors holds the model as it is",
            )
        return np.load(found), np.load(found.with_name(answer.PREPARED)) if is_prepared else None


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """answer.py in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", answer.__file__, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _write_pictures(images: tuple[np.ndarray, ...], folder: Path) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(folder / f"{number}.png")
    return folder


def _decisions(restored: Restored, logits: np.ndarray) -> np.ndarray:
    task = restored.task
    if isinstance(task, Segmentation):
        return logits.argmax(axis=1)
    if isinstance(task, MultiLabel):
        return task.scores(logits) >= task.cuts
    return task.answers(logits)
