"""Batches that do not fit are divided: every item once, in order, never below what norm layers need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from warmstart.data.batches import Batch
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.memory import AtOnce, within_memory
from warmstart.inference.predictor import predict_outputs
from warmstart.records import Preprocessing


def batches(*sizes: int) -> list[Batch]:
    numbers = iter(range(99))
    made = []
    for size in sizes:
        own = np.array([next(numbers) for _ in range(size)], dtype=np.int64)
        made.append(Batch(own[:, None].astype(np.uint8), own, own.astype(np.uint64), own))
    return made


@pytest.mark.parametrize("fewest", [1, 2])
@pytest.mark.parametrize("room_for", range(2, 12))
def test_every_image_counts_once_and_in_order(room_for: int, fewest: int) -> None:
    at_once = AtOnce()

    def compute(pieces: Any) -> list[int]:
        seen: list[int] = []
        for piece in pieces:
            if len(piece) > room_for + fewest - 1:  # three images cannot be divided into parts of two
                raise torch.OutOfMemoryError("full")
            assert len(piece) >= fewest
            assert piece.images[:, 0].tolist() == piece.indices.tolist() == piece.keys.tolist()
            seen += piece.targets.tolist()
        return seen

    for _ in range(2):
        assert within_memory(compute, iter(batches(11, 7, 9)), at_once, fewest) == list(range(27))


def test_other_errors_pass() -> None:
    def compute(pieces: Any) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        within_memory(compute, batches(4), AtOnce())


def test_predictions_in_parts_are_the_same_to_rounding() -> None:
    sizes: list[int] = []

    class Small(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return super().forward(images.flatten(1))

    pixels = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), dtype=np.uint8)
    rows = np.arange(23)
    whole = [
        Batch(pixels[part], rows[part], rows[part].astype(np.uint64), rows[part])
        for part in (rows[:12], rows[12:])
    ]
    inputs = InputBuffer(Preprocessing((4, 4), (0.4,), (0.3,)), torch.device("cpu"), False)
    module = Small(16, 5)
    done: list[int] = []
    found = predict_outputs(module, whole, inputs, on_batch=done.append)
    assert found.shape == (23, 5) and done == [12, 23]
    images = inputs(pixels).flatten(1)
    torch.testing.assert_close(
        torch.from_numpy(found), torch.nn.functional.linear(images, module.weight, module.bias).detach()
    )
    assert sizes[:2] == [12, 6] and max(sizes[3:]) == 3, "a size fails once"
