from __future__ import annotations

import numpy as np
import pytest
import torch

from warmstart.data.memory import keep
from warmstart.data.sources import open_source
from warmstart.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 9, 3), dtype=np.uint8)


def test_one_pair():
    place = keep((IMAGES, [3, 10] * 6))
    source = open_source(place)
    samples = source.splits["all"]
    assert place.startswith("memory:") and len(place) == 7 + 16
    assert source.classes == ("3", "10")
    assert samples.targets.tolist() == [0, 1] * 6
    assert samples.ids[11] == "all/000011"
    assert (samples.pixels.read(5) == IMAGES[5]).all()
    assert samples.pixels.array is IMAGES


def test_the_name_is_a_hash_of_the_content():
    labels = np.arange(12) % 2
    place = keep((IMAGES, labels))
    assert keep((IMAGES.copy(), labels.tolist())) == place
    assert keep((torch.from_numpy(IMAGES), torch.from_numpy(labels))) == place
    others = [
        (IMAGES[::-1], labels),
        (IMAGES, 1 - labels),
        (IMAGES, [("no", "yes")[n] for n in labels]),
        {"train": (IMAGES[:8], labels[:8]), "val": (IMAGES[8:], labels[8:])},
        (IMAGES.reshape(12, 9, 8, 3), labels),
    ]
    assert len({place, *map(keep, others)}) == 6


def test_splits_and_classes():
    data = {
        "train": (IMAGES[:6, ..., 0], ["cat", "dog"] * 3),
        "valid": (IMAGES[6:9, ..., 0], ["dog"] * 3),
        "test": (IMAGES[9:, ..., 0], ["cat"] * 3),
        "classes": ["dog", "cat"],
    }
    source = open_source(keep(data))
    assert source.classes == ("dog", "cat")
    assert {split: samples.targets.tolist() for split, samples in source.splits.items()} == {
        "train": [1, 0] * 3,
        "val": [0] * 3,
        "test": [1] * 3,
    }
    assert source.splits["val"].pixels.read(1).shape == (8, 9, 1)
    only = open_source(keep({"train": (IMAGES, [0, 1] * 6)}))
    assert list(only.splits) == ["all"] and only.notes == ("the arrays are train only: they are split",)


def test_sets_of_labels():
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]] * 6)
    source = open_source(keep({"all": (IMAGES, labels), "classes": ["a", "b", "c"]}))
    assert source.splits["all"].targets.dtype == np.uint8
    assert source.splits["all"].targets[0].tolist() == [1, 0, 1]
    assert open_source(keep((IMAGES, labels.bool()))).classes == ("0", "1", "2")


def test_another_process_does_not_have_them():
    with pytest.raises(
        UserError, match=r"were arrays in memory.*\n.*\nFix: in Python: ws.resume\(run, data="
    ):
        open_source("memory:0123456789abcdef")


LABELS = [0, 1] * 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (IMAGES / 255, LABELS),
            r"images are float64\n.*\nFix: \(images \* 255\)\.round\(\)\.astype\(np\.uint8\)",
        ),
        ((IMAGES.astype(np.int64), LABELS), r"images are int64\n.*\nFix: images\.astype\(np\.uint8\)"),
        ((RNG.integers(0, 9, (2, 3, 32, 32), np.uint8), [0, 1]), "channels seem to come first"),
        ((IMAGES[0, 0], [0] * 9), r"an array of shape \(9, 3\)"),
        ((IMAGES[:0], []), r"an array of shape \(0, 8, 9, 3\)"),
        (([IMAGES[0], IMAGES[1, :4]], [0, 1]), "a list of images of different sizes"),
        ((IMAGES, LABELS[:5]), r"12 images, and labels of the shape \(5,\)"),
        ((IMAGES, np.array(LABELS) / 2), "the labels are float64"),
        ((IMAGES, np.full((12, 2), 2)), "hold more than 0 and 1"),
        ({"all": (IMAGES, np.zeros((12, 2))), "classes": ["a"]}, "1 classes, and labels of the shape"),
        ({"all": (IMAGES, LABELS), "classes": ["a"]}, r"without a name: 1 \(6 rows\)"),
        ({"trian": (IMAGES, LABELS)}, "a part called 'trian'.*\n.*\nFix: Did you mean 'train'"),
        ({"all": (IMAGES, LABELS), "test": (IMAGES, LABELS)}, "the parts all, test"),
        (
            {"train": (IMAGES, LABELS), "test": (IMAGES, np.zeros((12, 2)))},
            "labels of the splits have the shapes",
        ),
        ({"all": (IMAGES, LABELS), "classes": ["a", "a"]}, "the class names hold 'a' twice"),
        ({"all": (IMAGES, np.zeros((12, 2))), "classes": ["a", "a"]}, "the class names hold 'a' twice"),
        ({"classes": ["a"]}, "the parts none"),
        ({"train": IMAGES}, "train: ndarray is no pair"),
        (3, "all: int is no pair of images and labels"),
    ],
)
def test_what_is_no_data_set(data, message):
    with pytest.raises(UserError, match=message):
        keep(data)
