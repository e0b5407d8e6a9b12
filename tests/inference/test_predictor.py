"""The one path of validation, evaluate and predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from warmstart.data.batches import Batch
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import predict_outputs
from warmstart.records import Preprocessing

PIXELS = Preprocessing((8, 8), (0.5,), (0.25,))
CPU = torch.device("cpu")


def batches(sizes: tuple[int, ...]) -> list[Batch]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (sum(sizes), 8, 8, 1), dtype=np.uint8)
    parts = np.split(images, np.cumsum(sizes)[:-1])
    return [
        Batch(p, np.zeros(len(p), np.int64), np.zeros(len(p), np.uint64), np.arange(len(p))) for p in parts
    ]


def test_outputs_are_those_of_evaluation_mode_and_the_mode_stays() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.9), nn.Linear(144, 3)
    )
    module.train()
    statistics = module[1].running_mean.clone()
    outputs = predict_outputs(module, batches((3, 3, 1)), InputBuffer(PIXELS, CPU, False))
    assert not any(m.training for m in module.modules())
    assert torch.equal(module[1].running_mean, statistics)
    assert outputs.dtype == np.float32 and outputs.shape == (7, 3)
    one_by_one = predict_outputs(module, batches((1,) * 7), InputBuffer(PIXELS, CPU, False))
    np.testing.assert_allclose(outputs, one_by_one, atol=1e-6)


def test_reused_memory_does_not_change_earlier_outputs() -> None:
    """A model whose output is its input: the buffer that the next batch overwrites."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    given = batches((2, 2, 2))
    outputs = predict_outputs(Last(), given, InputBuffer(PIXELS, CPU, False))
    alone = [predict_outputs(Last(), [batch], InputBuffer(PIXELS, CPU, False)) for batch in given]
    assert np.array_equal(outputs, np.concatenate(alone))


def test_progress_counts_images_and_nothing_gives_nothing() -> None:
    seen: list[int] = []
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    predict_outputs(module, batches((3, 2)), InputBuffer(PIXELS, CPU, False), on_batch=seen.append)
    assert seen == [3, 5]
    assert predict_outputs(module, [], InputBuffer(PIXELS, CPU, False)).shape == (0, 0)


def test_the_model_can_train_on_after_a_prediction() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    predict_outputs(module, batches((2,)), InputBuffer(PIXELS, CPU, False))
    module.train()
    module(InputBuffer(PIXELS, CPU, False)(batches((2,))[0].images)).sum().backward()
    assert module[1].weight.grad is not None
