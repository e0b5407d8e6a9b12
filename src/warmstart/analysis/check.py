"""A look before the run: does the checkpoint load, do the data fit it, what does a batch cost? (0.31)"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from warmstart.analysis.samples import open_evaluation_set
from warmstart.console import table
from warmstart.data.batches import evaluation_batches
from warmstart.errors import listing
from warmstart.inference.device import peak_bytes
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import predict_outputs
from warmstart.inference.restore import Restored
from warmstart.tasks.classification import Classification

_NUM_BATCHES = 3


@dataclass(frozen=True)
class Check:
    """What was found; `metrics` are over the first three batches, `notes` what deserves a thought."""

    model: str
    architecture: str
    num_parameters: int
    parameter_bytes: int
    blocks: list[dict[str, Any]]
    preprocessing: dict[str, Any]
    classes: tuple[str, ...] | None
    num_samples: int
    metrics: dict[str, float]
    seconds_per_batch: float
    images_per_s: float
    peak_bytes: int | None
    notes: tuple[str, ...]

    def text(self) -> str:
        memory = "not measured here" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.2f} GiB"
        size = "x".join(map(str, self.preprocessing["image_size"]))
        named = listing(self.classes, 12) if self.classes is not None else "not named in the file"
        blocks = table(
            "", ("block", "parameters"), [(b["name"], f"{b['parameters']:,}") for b in self.blocks]
        )
        lines = [
            f"{self.model}: {self.architecture}, {self.num_parameters:,} parameters "
            f"({self.parameter_bytes / 1e6:.1f} MB), input {size}",
            f"classes: {named}",
            "",
            blocks,
            "",
            f"{self.num_samples} images: accuracy {self.metrics['accuracy']:.4f} "
            f"(95 % interval {self.metrics['accuracy_low']:.3f} to {self.metrics['accuracy_high']:.3f}), "
            f"loss {self.metrics['loss']:.4f}",
            f"{self.seconds_per_batch:.3f} s per batch, {self.images_per_s:.0f} images/s forward; peak memory {memory}",
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(restored: Restored, data: str, batch_size: int = 32, workers: int = 0) -> Check:
    """Forward three shuffled batches of the data through the model and measure.

    Raises:
        UserError: as for evaluate.
    """
    built = restored.built
    chosen = open_evaluation_set(None, data, None, built.classes, restored.names_known)
    samples = chosen.samples[0]
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(samples))[
        : _NUM_BATCHES * batch_size
    ]
    picked, targets = samples.subset(order), chosen.targets[order]
    device = next(built.module.parameters()).device
    inputs = InputBuffer(built.preprocessing, device, built.channels_last)
    batches = evaluation_batches(picked, built.preprocessing, restored.native, batch_size, workers)
    outputs, times = [], []
    for batch in islice(batches, _NUM_BATCHES):
        start = time.perf_counter()
        outputs.append(predict_outputs(built.module, [batch], inputs))
        times.append(time.perf_counter() - start)
    scores = np.concatenate(outputs)
    metrics = Classification(built.classes).evaluate(scores, targets[: len(scores)])
    seconds = float(np.median(times))
    return Check(
        model=restored.label,
        architecture=built.name,
        num_parameters=sum(p.numel() for p in built.module.parameters()),
        parameter_bytes=sum(p.numel() * p.element_size() for p in built.module.parameters()),
        blocks=_blocks(restored),
        preprocessing=asdict(built.preprocessing),
        classes=built.classes if restored.names_known else None,
        num_samples=len(scores),
        metrics=metrics,
        seconds_per_batch=seconds,
        images_per_s=min(batch_size, len(scores)) / seconds,
        peak_bytes=peak_bytes(device),
        notes=tuple(_notes(restored, scores, metrics)),
    )


def _blocks(restored: Restored) -> list[dict[str, Any]]:
    sizes = {name: p.numel() for name, p in restored.built.module.named_parameters()}
    return [
        {"name": block.name, "parameters": sum(sizes[name] for name in block.parameters)}
        for block in restored.built.blocks
    ]


def _notes(restored: Restored, scores: np.ndarray, metrics: dict[str, float]) -> list[str]:
    built = restored.built
    notes = []
    broken = [
        name for name, tensor in built.module.state_dict().items() if not torch.isfinite(tensor.float()).all()
    ]
    if broken:
        notes.append(f"{len(broken)} tensors hold NaN or infinite values, the first is {broken[0]}")
    if not restored.names_known:
        notes.append("the file names no classes: outputs are taken in the order of the data's classes")
    chance = 1 / len(built.classes)
    if metrics["accuracy_high"] < 2 * chance and len(built.classes) > 2:
        notes.append(
            f"accuracy {metrics['accuracy']:.3f} is near chance ({chance:.3f}): "
            "other classes, another class order, or another preprocessing (--mean, --std, --image-size)?"
        )
    if len(np.unique(scores.argmax(axis=1))) == 1 and len(scores) > 10:
        notes.append("every image gets the same class")
    return notes
