"""Whether what was exported answers as the model does: on real images, in a fresh process."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.analysis.samples import open_evaluation_set
from warmstart.config.schema import DataConfig
from warmstart.data.batches import evaluation_batches
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.restore import Restored
from warmstart.methods.export import answer
from warmstart.models.build import BuiltModel
from warmstart.models.recipe import QUANTISED
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_ROUNDING = 1e-3  # of the largest logit
# A format that stores less than float32 has rounded the weights themselves.
_STORED = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Of a model trained for int8: what lies between two whole numbers falls to either side by rounding, in every layer.
_STEPS, _LEAST_OF_STEPS = 0.3, 0.9
_LEAST_PIXELS = 0.999  # of those of masks, where ties lie along every border
_LAST_WORDS = 3


@dataclass(frozen=True)
class Probe:
    """Normalised images float32 (N, C, h, w), what they are, and the model's logits of them."""

    images: np.ndarray
    text: str
    logits: np.ndarray


@dataclass(frozen=True)
class Parity:
    """How far the answers are apart: `difference` is the largest of logits, `same` the share of equal decisions, of
    images, of their labels or of the pixels of masks."""

    images: str
    num_images: int
    difference: float
    largest_logit: float
    same: float

    def text(self) -> str:
        return (
            f"{self.images}, read again in a fresh process: largest difference of logits {self.difference:.2g} "
            f"(largest logit {self.largest_logit:.3g}), decisions equal {self.same:.2%}"
        )


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
    inputs = InputBuffer(built.preprocessing, torch.device("cpu"), channels_last=False)
    batches = evaluation_batches(
        samples.subset(places), built.preprocessing, restored.native, len(places), workers
    )
    images = np.concatenate([inputs(batch.images).numpy().copy() for batch in batches])
    return Probe(
        images, f"{len(images)} images of {chosen.split} of {chosen.path}", _logits(restored, images)
    )


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
        UserError: it cannot be read, or answers otherwise.
    """
    found = _answers(to, path, probe.images, told)
    if found.shape != probe.logits.shape:
        raise UserError(
            f"{to} of {restored.label} gives {found.shape} where the model gives {probe.logits.shape}",
            "the same answers",
            "--to safetensors holds the model as it is",
        )
    parity = Parity(
        probe.text,
        len(probe.images),
        float(np.abs(found - probe.logits).max()),
        float(np.abs(probe.logits).max()),
        float((_decisions(restored, found) == _decisions(restored, probe.logits)).mean()),
    )
    tolerance, is_exact = _STORED.get(stored, _ROUNDING), stored not in _STORED
    least = 0.0 if not is_exact else _LEAST_PIXELS if restored.built.segments else 1.0
    if _is_quantised(restored.built):
        tolerance, least = _STEPS, _LEAST_OF_STEPS
    if not parity.difference <= tolerance * parity.largest_logit or parity.same < least:
        raise UserError(
            f"{to} of {restored.label} gives other answers, and was not kept: {parity.text()}",
            f"logits equal to {tolerance:g} of the largest, and the same decisions",
            "--to safetensors holds the model as it is",
        )
    return parity


def _is_quantised(built: BuiltModel) -> bool:
    return built.recipe is not None and QUANTISED in built.recipe.kinds


def _answers(to: str, path: Path, images: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(given, images)
        command = [
            sys.executable,
            "-P",
            answer.__file__,
            to,
            str(path),
            str(given),
            str(found),
            json.dumps(told),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-_LAST_WORDS:])
            raise UserError(
                f"what was exported cannot be read again: {last}",
                f"a file for {to}",
                "--to safetensors holds the model as it is",
            )
        logits: np.ndarray = np.load(found)
    return logits


def _decisions(restored: Restored, logits: np.ndarray) -> np.ndarray:
    task = restored.task
    if isinstance(task, Segmentation):
        return logits.argmax(axis=1)
    if isinstance(task, MultiLabel):
        return task.scores(logits) >= task.cuts
    return task.answers(logits)
