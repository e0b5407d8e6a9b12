"""class_weights.py: from the setting to numbers, and the messages."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.errors import UserError
from warmstart.tasks.class_weights import resolve_class_weights

CLASSES = ("cat", "dog", "tench, Tinca tinca")
COUNTS = {"cat": 10, "dog": 30, "tench, Tinca tinca": 60}


@pytest.mark.parametrize("setting", [None, "none", " None "])
def test_no_class_weights(setting):
    assert resolve_class_weights(setting, CLASSES, COUNTS) is None


def test_balanced_class_weights_equal_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(3), list(COUNTS.values()))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = resolve_class_weights("balanced", CLASSES, COUNTS)
    assert found == pytest.approx(tuple(expected), rel=1e-15)
    assert [w * n for w, n in zip(found, COUNTS.values(), strict=True)] == pytest.approx([100 / 3] * 3)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("cat=2", (2, 1, 1)),
        (" dog = .5 , cat=0", (0, 0.5, 1)),
        ("tench, Tinca tinca=3,cat=2", (2, 1, 3)),
        ("cat=2,tench, Tinca tinca=1e-1", (2, 1, 0.1)),
    ],
)
def test_named_class_weights(setting, expected):
    assert resolve_class_weights(setting, CLASSES, COUNTS) == expected


def test_an_equals_sign_may_be_part_of_a_name():
    assert resolve_class_weights("a=b=2", ("a=b", "c"), {}) == (2, 1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cta=2", ["no class is named 'cta'", "cat, dog", "Did you mean 'cat'?"]),
        ("zzz=2", ["no class is named 'zzz'", "use the name of a class"]),
        ("cat=two", ["'two' is no weight for 'cat'", "a finite number from 0 on", "cat=2"]),
        ("cat=-1", ["'-1' is no weight for 'cat'"]),
        ("cat=nan", ["'nan' is no weight for 'cat'"]),
        ("cat=inf", ["'inf' is no weight for 'cat'"]),
        ("cat=", ["'' is no weight for 'cat'"]),
        ("ballanced", ["'ballanced' is not NAME=WEIGHT", "balanced, or NAME=WEIGHT"]),
        ("cat,dog=1", ["'cat' is not NAME=WEIGHT"]),
        ("cat=1,", ["'' is not NAME=WEIGHT"]),
        ("cat=1,cat=2", ["'cat' has two weights, 1 and 2"]),
        ("cat=0,dog=0,tench, Tinca tinca=0", ["gives every class a weight of 0"]),
        (
            "cta=2,dog=x",
            ["2 problems in class_weights", "1. class_weights: no class", "2. class_weights: 'x'"],
        ),
    ],
)
def test_wrong_class_weights_teach(setting, words):
    with pytest.raises(UserError) as caught:
        resolve_class_weights(setting, CLASSES, COUNTS)
    for word in words:
        assert word in str(caught.value)


def test_balanced_needs_images_of_every_class():
    with pytest.raises(UserError, match="no training images of 'dog'"):
        resolve_class_weights("balanced", ("cat", "dog"), {"cat": 3, "dog": 0})
