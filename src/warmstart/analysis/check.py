"""A look before the run: does the checkpoint load, do the data fit it, what does a batch cost?"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, task_and_targets
from warmstart.config.io import from_dict
from warmstart.config.mask_values import LABEL_LEAVES
from warmstart.config.schema import DataConfig
from warmstart.console import table
from warmstart.data import counters
from warmstart.errors import UserError, listing
from warmstart.inference.device import peak_bytes
from warmstart.inference.restore import Restored
from warmstart.models.adapters.four_bit import without_codes
from warmstart.models.build import BuiltModel
from warmstart.shown import Shown
from warmstart.tasks.classification import Classification
from warmstart.tasks.mask_metrics import counts_of
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_NUM_BATCHES = 3
AnyTask: TypeAlias = Classification | MultiLabel | Segmentation


@dataclass(frozen=True)
class Check(Shown):
    """What was found; `metrics` are over the first three batches, `notes` what deserves a thought."""

    run: str | None
    model: str
    architecture: str
    num_parameters: int
    parameter_bytes: int
    blocks: list[dict[str, Any]]
    preprocessing: dict[str, Any]
    classes: tuple[str, ...] | None
    num_samples: int
    metrics: dict[str, float] | None  # None: the data have classes that the model does not know
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
            self._quality(),
            f"{self.seconds_per_batch:.3f} s per batch, {self.images_per_s:.0f} images/s with decoding; "
            f"peak memory {memory}",
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _quality(self) -> str:
        if self.metrics is None:
            return f"{self.num_samples} images: no accuracy, as the classes differ"
        m = self.metrics
        if "miou" in m:
            interval = f"95 % interval {m['miou_low']:.3f} to {m['miou_high']:.3f}"
            return (
                f"{self.num_samples} images: mIoU {m['miou']:.4f} ({interval}), "
                f"pixel accuracy {m['accuracy']:.4f}, loss {m['loss']:.4f}"
            )
        if "map" in m:
            return f"{self.num_samples} images: mAP {m['map']:.4f}, loss {m['loss']:.4f}"
        interval = f"95 % interval {m['accuracy_low']:.3f} to {m['accuracy_high']:.3f}"
        return f"{self.num_samples} images: accuracy {m['accuracy']:.4f} ({interval}), loss {m['loss']:.4f}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(restored: Restored, data: DataConfig, batch_size: int = 32, workers: int = 0) -> Check:
    """Forward three shuffled batches of the data through the model and measure.

    Raises:
        UserError: as for evaluate.
    """
    built = restored.built
    device = next(built.module.parameters()).device
    run = restored.reference.run
    if run is not None:
        own = from_dict(run.config).data
        missing = [name for name in LABEL_LEAVES if name not in data.model_fields_set]
        data = data.model_copy(update={name: getattr(own, name) for name in missing})
    chosen = open_evaluation_set(None, data, None, built)
    task, targets, notes = _settle(chosen, restored)
    samples = chosen.samples[0]
    order = counters.generator(0, 0, counters.CHECK).permutation(len(samples))[: _NUM_BATCHES * batch_size]
    kept, answers, times = [], [], []
    for start in range(0, len(order), batch_size):
        began = time.perf_counter()
        part = samples.subset(order[start : start + batch_size])
        outputs = restored.outputs([part], batch_size, workers, task=task)
        times.append(time.perf_counter() - began)
        answers.append(_answers(outputs, task or restored.task))
        if task is not None:  # else those of masks are as large as images, and nothing is measured
            kept.append(outputs)
    metrics = None if task is None else task.evaluate(np.concatenate(kept), targets[order])
    notes = _notes(restored, np.concatenate(answers)) + notes
    seconds = float(np.median(times))
    _, codes = without_codes(built.module.state_dict())
    blocks = _blocks(restored)
    return Check(
        run=str(run.path) if run is not None else None,
        model=restored.label,
        architecture=built.name,
        num_parameters=sum(block["parameters"] for block in blocks),
        parameter_bytes=sum(t.nbytes for t in (*built.module.parameters(), *codes.values())),
        blocks=blocks,
        preprocessing=asdict(built.preprocessing),
        classes=built.classes if restored.built.names_known else None,
        num_samples=len(order),
        metrics=metrics,
        seconds_per_batch=seconds,
        images_per_s=min(batch_size, len(order)) / seconds,
        peak_bytes=peak_bytes(device),
        notes=tuple(notes + _chance_notes(built, metrics)),
    )


def _settle(chosen: EvaluationSet, restored: Restored) -> tuple[AnyTask | None, np.ndarray, list[str]]:
    """(task, targets in the model's numbers, notes); no task where the data have classes that the model lacks."""
    try:
        task, targets = task_and_targets(chosen, restored)
    except UserError as error:
        if restored.built.segments != (chosen.ignore is not None):
            raise
        # For `check` no mistake: new classes are what fine-tuning is for.
        note = f"{error.happened}; `finetune` keeps the rows of equal names and makes the others anew"
        return None, chosen.targets, [note]
    return task, targets, []


def _answers(outputs: np.ndarray, task: AnyTask) -> np.ndarray:
    """(N,) the class of each image; or bool (N, K), its labels, or the classes that its pixels get."""
    if isinstance(task, MultiLabel):
        return outputs > 0
    if not isinstance(task, Segmentation):
        return outputs.argmax(axis=1)
    if outputs.ndim == 2:
        return counts_of(outputs).predicted > 0
    said = outputs.argmax(axis=1)
    return np.stack([(said == number).any(axis=(1, 2)) for number in range(outputs.shape[1])], axis=1)


def _blocks(restored: Restored) -> list[dict[str, Any]]:
    sizes = {name: p.numel() for name, p in restored.built.module.named_parameters()}
    return [
        {"name": block.name, "parameters": sum(sizes[n] for n in block.parameters) + block.num_four_bit}
        for block in restored.built.blocks
    ]


def _notes(restored: Restored, answers: np.ndarray) -> list[str]:
    built = restored.built
    notes = []
    broken = [
        name for name, tensor in built.module.state_dict().items() if not torch.isfinite(tensor.float()).all()
    ]
    if broken:
        notes.append(f"{len(broken)} tensors hold NaN or infinite values, the first is {broken[0]}")
    if not restored.built.names_known:
        notes.append("the file names no classes: outputs are taken in the order of the data's classes")
    if built.segments:
        if answers.any(axis=0).sum() == 1:
            notes.append("every pixel gets the same class")
    elif len(np.unique(answers, axis=0)) == 1 and len(answers) > 10:
        notes.append(f"every image gets the same {'labels' if answers.ndim == 2 else 'class'}")
    return notes


def _chance_notes(built: BuiltModel, metrics: dict[str, float] | None) -> list[str]:
    chance = 1 / len(built.classes)
    if (
        metrics is None
        or "accuracy_high" not in metrics  # sets and masks, where chance is not one over the classes
        or len(built.classes) == 2
        or metrics["accuracy_high"] >= 2 * chance
    ):
        return []
    return [
        f"accuracy {metrics['accuracy']:.3f} is near chance ({chance:.3f}): "
        "other classes, another class order, or another preprocessing (--mean, --std, --image-size)?"
    ]
