"""Training images that the ranges of a model's numbers are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from warmstart.data.batches import evaluation_batches
from warmstart.data.samples import Samples
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.restore import Restored

_BATCH = 16  # so few that the size of the images hardly matters


@dataclass(frozen=True, eq=False)
class Calibration:
    """Some training images, seen as in evaluation; each pass reads them anew."""

    restored: Restored
    samples: Samples
    workers: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Tensor]:
        """Normalised batches, float32 (N, C, h, w) on the model's device, each valid until the next."""
        built = self.restored.built
        inputs = InputBuffer(built.preprocessing, next(built.module.parameters()).device, built.channels_last)
        for batch in evaluation_batches(
            self.samples, built.preprocessing, self.restored.native, _BATCH, self.workers
        ):
            yield inputs(batch.images)


def calibration_images(
    restored: Restored, train: Samples | None, number: int, seed: int, workers: int = 0
) -> Calibration:
    """`number` of the training images, or all where there are fewer, drawn by `seed`.

    Raises:
        UserError: there are none.
    """
    if train is None or not len(train) or number < 1:
        what = "--calibration 0" if number < 1 else f"{restored.label} has no training images"
        raise UserError(
            f"{what}: nothing to measure the ranges of a model's numbers on",
            "images like those that the model will see, some hundred",
            "--calibration 256, with the run's own data or --data DATA with a train split",
        )
    rows = np.random.default_rng(seed).permutation(len(train))[:number]
    return Calibration(restored, train.subset(np.sort(rows)), workers)
