"""What is looked into: a model, and images with what it made of them.

Shapes: N images, K classes, D features of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.analysis.explain.cases import AnyTask
from warmstart.analysis.predict import readable_samples
from warmstart.analysis.samples import open_evaluation_set, task_and_targets
from warmstart.config.schema import DataConfig
from warmstart.console import progress
from warmstart.data.batches import Batch, evaluation_batches
from warmstart.data.samples import Samples
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import Statistics, predict_outputs
from warmstart.inference.restore import Restored
from warmstart.inference.separation import vectors
from warmstart.tasks.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class Subject:
    """`outputs` are logits (N, K), the rows of counts that the task keeps of masks, or their shares of pixels (N, K)
    where there is no mask; `embeddings` (N, D) is what went into the classifier; `targets` None: without labels.
    """

    restored: Restored
    task: AnyTask
    samples: tuple[Samples, ...]
    outputs: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    targets: NDArray[np.int64] | None
    what: str  # in words
    split: str  # for the name of a folder
    workers: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.samples for name in part.ids)

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def device(self) -> torch.device:
        return next(self.restored.built.module.parameters()).device

    def batch(self, place: int) -> Batch:
        """The one image at a place, as the model takes it, with its mask if it has one."""
        for part in self.samples:
            if place < len(part):
                return next(iter(self._batches(part.subset(np.array([place])), 1, 0)))
            place -= len(part)
        raise AssertionError("a place beyond the last image")

    def inputs(self) -> InputBuffer:
        built = self.restored.built
        return InputBuffer(built.preprocessing, self.device, built.channels_last)

    def first(self, num: int) -> Any:
        """Batches of the first images."""
        for part in self.samples:
            taken = part.subset(np.arange(min(num, len(part))))
            num -= len(taken)
            if len(taken):
                yield from self._batches(taken, self.restored.eval_batch_size, self.workers)

    def _batches(self, samples: Samples, size: int, workers: int) -> Any:
        built = self.restored.built
        return evaluation_batches(samples, built.preprocessing, self.restored.native, size, workers)


def labelled_subject(
    restored: Restored, data: DataConfig | None, split: str | None, only: int | None, limit: int, workers: int
) -> Subject:
    """At most `limit` images of a split, drawn with a fixed seed; those of the class `only` first.

    UserError: as `evaluate` raises for data that are missing or of other classes.
    """
    chosen = open_evaluation_set(restored.reference.run, data, split, restored.built)
    task, targets = task_and_targets(chosen, restored)
    order = np.random.default_rng(0).permutation(len(targets))
    if only is not None:
        has = targets[order] == only if targets.ndim == 1 else targets[order, only] > 0
        order = order[np.argsort(~has, kind="stable")]
    rows = np.sort(order[:limit])
    samples = _taken(chosen.samples, rows)
    outputs, embeddings = _pass(restored, samples, task.statistics, workers)
    what = f"{chosen.split} of {chosen.path}" + (
        f", {len(rows)} of {len(targets)}" if len(rows) < len(targets) else ""
    )
    return Subject(
        *(restored, task, samples, outputs, embeddings, targets[rows], what, chosen.split, workers),
        unreadable=chosen.unreadable,
    )


def unlabelled_subject(restored: Restored, images: list[str], workers: int) -> Subject:
    """Files and folders of images. UserError: as `predict` raises."""
    samples, unreadable = readable_samples(restored, images, workers)
    task = restored.task
    statistics = _shares if isinstance(task, Segmentation) else None
    outputs, embeddings = _pass(restored, (samples,), statistics, workers)
    what = f"{len(samples)} image{'s' if len(samples) > 1 else ''}"
    return Subject(
        *(restored, task, (samples,), outputs, embeddings, None, what, "images", workers),
        unreadable=unreadable,
    )


def _taken(parts: tuple[Samples, ...], rows: NDArray[np.int64]) -> tuple[Samples, ...]:
    """The samples at these places of all parts in a row."""
    ends = np.cumsum([len(part) for part in parts])
    found = (
        part.subset(rows[(rows >= end - len(part)) & (rows < end)] - (end - len(part)))
        for part, end in zip(parts, ends.tolist(), strict=True)
    )
    return tuple(part for part in found if len(part))


def _pass(
    restored: Restored, samples: tuple[Samples, ...], statistics: Statistics | None, workers: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(outputs, embeddings) of all samples: one pass, in which the classifier's input is seen too."""
    built, size = restored.built, restored.eval_batch_size
    seen: list[torch.Tensor] = []

    def look(_: torch.nn.Module, arguments: tuple[Any, ...], __: Any) -> None:
        seen.append(vectors(arguments[0]).to("cpu", torch.float32, copy=True))

    batches = (
        evaluation_batches(part, built.preprocessing, restored.native, size, workers) for part in samples
    )
    device = next(built.module.parameters()).device
    inputs = InputBuffer(built.preprocessing, device, built.channels_last)
    hook = built.module.get_submodule(built.head).register_forward_hook(look)
    try:
        with progress("looking", sum(map(len, samples))) as bar:
            outputs = predict_outputs(
                built.module, chain.from_iterable(batches), inputs, restored.precision, bar.update, statistics
            )
    finally:
        hook.remove()
    return outputs, torch.cat(seen).numpy()


def _shares(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """(N, K, h, w) -> (N, K): the share of pixels that a class is given."""
    answers = outputs.argmax(dim=1).flatten(1)
    return torch.stack([(answers == k).float().mean(dim=1) for k in range(outputs.shape[1])], dim=1)
