"""The masks that a run's checkpoint answers, for the few images of a page. Needs torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from warmstart.inference.device import resolve_device
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.masks import Looks, predict_mask
from warmstart.inference.restore import restore
from warmstart.run.reader import Run


def mask_predictor(run: Run, step: int) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (H, W, 3) -> int64 (H, W). UserError where the checkpoint is gone or damaged."""
    restored = restore(f"{run.path}@{step}", resolve_device("cpu"), task=run.task)
    built = restored.built
    inputs = InputBuffer(built.preprocessing, resolve_device("cpu"), built.channels_last)

    def predict(image: np.ndarray) -> np.ndarray:
        return predict_mask(built.module, image, built.preprocessing, inputs, Looks(), restored.native)

    return predict
