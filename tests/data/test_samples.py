from __future__ import annotations

import numpy as np

from warmstart.data.samples import ArrayPixels, Samples


def make(num: int = 6) -> Samples:
    pixels = np.arange(num * 4, dtype=np.uint8).reshape(num, 2, 2)
    return Samples(tuple(f"train/{i:05d}" for i in range(num)), np.arange(num) % 2, ArrayPixels(pixels))


def test_a_subset_keeps_ids_targets_and_pixels_together():
    samples = make()
    twice = samples.subset(np.array([5, 3, 1])).subset(np.array([2, 0]))
    assert twice.ids == ("train/00001", "train/00005")
    assert twice.targets.tolist() == [1, 1]
    assert twice.pixels.read(1)[..., 0].tolist() == [[20, 21], [22, 23]]
    assert len(twice) == 2
    assert len(samples) == 6


def test_a_key_belongs_to_the_id_alone():
    samples = make()
    assert samples.keys.dtype == np.uint64
    assert len(set(samples.keys.tolist())) == 6
    assert (samples.subset(np.array([4, 2])).keys == samples.keys[[4, 2]]).all()
    assert int(samples.keys[0]) == 0xC16CF6A348044B83  # recorded runs depend on it
    assert Samples((), np.zeros(0, np.int64), ArrayPixels(np.zeros((0, 2, 2), np.uint8))).keys.shape == (0,)


def test_arrays_have_a_channel_axis():
    assert make().pixels.read(0).shape == make().pixels.shape(0) == (2, 2, 1)
    colour = ArrayPixels(np.zeros((3, 4, 5, 3), dtype=np.uint8))
    assert colour.read(0).shape == colour.shape(0) == (4, 5, 3)


def test_ids_that_are_not_utf8_have_keys():
    name = b"train/cat/\xff.jpg".decode("utf-8", "surrogateescape")
    pixels = ArrayPixels(np.zeros((1, 2, 2), dtype=np.uint8))
    assert Samples((name,), np.zeros(1, dtype=np.int64), pixels).keys.shape == (1,)
