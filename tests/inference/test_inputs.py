"""Pixels to input: what torchvision's ToTensor and Normalize give, bit for bit, in memory that is reused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import transforms

from warmstart.inference.inputs import InputBuffer
from warmstart.records import Preprocessing

RGB = Preprocessing((9, 7), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Preprocessing((9, 7), (0.1307,), (0.3081,))


def pixels(num: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 9, 7, channels), dtype=np.uint8)


@pytest.mark.parametrize("preprocessing", [RGB, GREY])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_equal_torchvisions_to_the_bit(preprocessing: Preprocessing, channels_last: bool) -> None:
    images = pixels(5, preprocessing.num_channels)
    steps = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )
    expected = torch.stack([steps(image) for image in images])
    result = InputBuffer(preprocessing, torch.device("cpu"), channels_last)(images)
    assert torch.equal(result, expected)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)


def test_memory_is_reused_for_smaller_batches_and_replaced_for_larger_ones() -> None:
    inputs = InputBuffer(RGB, torch.device("cpu"), True)
    first = inputs(pixels(4, 3))
    place = first.data_ptr()
    smaller = inputs(pixels(2, 3, seed=1))
    assert smaller.data_ptr() == place and len(smaller) == 2
    assert torch.equal(smaller, InputBuffer(RGB, torch.device("cpu"), True)(pixels(2, 3, seed=1)))
    larger = inputs(pixels(6, 3, seed=2))
    assert torch.equal(larger, InputBuffer(RGB, torch.device("cpu"), False)(pixels(6, 3, seed=2)))


def test_the_images_stay_as_they_are() -> None:
    images = pixels(3, 1)
    kept = images.copy()
    InputBuffer(GREY, torch.device("cpu"), False)(images)
    assert np.array_equal(images, kept)
