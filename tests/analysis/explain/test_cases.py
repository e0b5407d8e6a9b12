"""Which images are shown: right ones of every class, the surest mistakes, and never one that does not belong."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.analysis.explain.cases import class_number, labelled_cases, unlabelled_cases
from warmstart.errors import UserError
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

NAMES = ("ant", "bee", "cat")
TASK = Classification(NAMES)
TARGETS = np.array([0, 0, 0, 1, 1, 2, 2, 0])
ANSWERS = np.array([0, 0, 0, 1, 2, 0, 1, 1])
SURE = np.array([5.0, 6.0, 4.0, 1.0, 2.0, 8.0, 3.0, 7.0])
LOGITS = (np.eye(3)[ANSWERS] * SURE[:, None]).astype(np.float32)


def test_right_ones_in_turn_and_the_surest_mistakes() -> None:
    found = labelled_cases(TASK, LOGITS, TARGETS, 6, None)
    assert [(case.place, case.group) for case in found] == [
        (1, "right"),
        (3, "right"),
        (0, "right"),
        (5, "wrong"),
        (7, "wrong"),
        (6, "wrong"),
    ]
    assert [case.classes for case in found] == [(0,), (1,), (0,), (0, 2), (1, 0), (1, 2)]
    worst = found[3]
    assert (worst.label, worst.answer) == ("cat", "ant")
    assert worst.score == pytest.approx(np.exp(8) / (np.exp(8) + 2))


def test_where_one_side_is_short_the_other_fills_up() -> None:
    right = labelled_cases(TASK, LOGITS[:4], TARGETS[:4], 4, None)
    assert [case.group for case in right] == ["right"] * 4
    wrong = labelled_cases(TASK, LOGITS[4:], TARGETS[4:], 4, None)
    assert [case.group for case in wrong] == ["wrong"] * 4


def test_one_class_only() -> None:
    found = labelled_cases(TASK, LOGITS, TARGETS, 8, 0)
    assert {case.place for case in found} == {0, 1, 2, 7} and {case.classes for case in found} == {(0,)}
    with pytest.raises(
        UserError, match=r"(?s)no image of the class cat among these 5.*another --class-name.*--limit"
    ):
        labelled_cases(TASK, LOGITS[:5], TARGETS[:5], 8, 2)
    with pytest.raises(
        UserError, match=r"(?s)--class-name bees: the model has no such class.*Did you mean 'bee'"
    ):
        class_number("bees", NAMES)


def test_images_without_labels() -> None:
    found = unlabelled_cases(TASK, LOGITS[:2] + np.array([[0, 0, 1], [0, 1, 0]], np.float32), None)
    assert [(case.classes, case.answer, case.group) for case in found] == [
        ((0, 2), "ant", "given"),
        ((0, 1), "ant", "given"),
    ]
    assert [case.classes for case in unlabelled_cases(TASK, LOGITS[:2], 1)] == [(1,), (1,)]
    shares = np.array([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    masks = unlabelled_cases(Segmentation(NAMES), shares, None)
    assert [case.classes for case in masks] == [(1,), (2, 1)] and masks[1].score == pytest.approx(0.5)


def test_sets_of_labels() -> None:
    task = MultiLabel(NAMES)
    logits = np.array([[3, -3, -3], [-3, 2, 4], [1, -3, -3], [-4, -4, -4], [2, -2, -5]], np.float32)
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], np.uint8)
    found = labelled_cases(task, logits, targets, 6, None)
    assert [(c.place, c.group, c.classes, c.label, c.answer) for c in found] == [
        (0, "right", (0,), "ant", "ant"),
        (1, "wrong", (2,), "bee", "bee, cat"),
        (2, "wrong", (2,), "cat", "ant"),
        (4, "wrong", (1,), "ant, bee", "ant"),
    ], "rightly nothing (3) is no mistake; a set with a label missed (4) is, whatever its likeliest label"
    assert found[2].title == "cat → ant; cat 0.05"
    strict = MultiLabel(
        NAMES, thresholds=(0.01, 0.5, 0.9)
    )  # "ant" of image 2 is said more loudly than "cat" missed
    assert labelled_cases(strict, logits[2:3], targets[2:3], 1, None)[0].scored == "ant"
    only = labelled_cases(task, logits, targets, 4, 1)
    assert [(c.place, c.group) for c in only] == [(1, "right"), (4, "wrong")], "its label was missed"


def test_sets_of_images_without_labels_are_what_is_above_the_thresholds() -> None:
    logits = np.array([[-3, 2, 4], [-4, -3, -4]], np.float32)
    found = unlabelled_cases(MultiLabel(NAMES), logits, None)
    assert [(c.answer, c.scored) for c in found] == [("bee, cat", "cat"), ("none", "bee")]


def test_a_title_names_the_class_of_its_score() -> None:
    (missed,) = labelled_cases(TASK, LOGITS[5:6], TARGETS[5:6], 1, 2)
    assert missed.title == "cat → ant; cat 0.00"
    assert labelled_cases(TASK, LOGITS[5:6], TARGETS[5:6], 1, None)[0].title == "cat → ant 1.00"
    assert unlabelled_cases(TASK, LOGITS[1:2], 1)[0].title == "ant; bee 0.00"
    shares = np.array([[0.2, 0.3, 0.5]], np.float32)
    assert unlabelled_cases(Segmentation(NAMES), shares, 0)[0].title == "cat; share of ant 0.20"
    assert unlabelled_cases(Segmentation(NAMES), shares, None)[0].title == "cat share 0.50"


def test_pairs_of_image_and_class_of_masks() -> None:
    """Rows of counts: hits, predicted, wanted, loss, valid pixels."""
    rows = np.array(
        [
            [80, 0, 0, 85, 15, 0, 90, 10, 0, 1, 100],
            [0, 50, 0, 0, 100, 0, 40, 60, 0, 1, 100],
            [60, 0, 0, 100, 0, 0, 60, 0, 40, 1, 100],
        ],
        np.float64,
    )
    found = labelled_cases(Segmentation(NAMES), rows, np.zeros(0, np.int64), 6, None)
    assert [(c.place, c.group, c.classes) for c in found] == [
        (0, "right", (0,)),
        (2, "right", (0,)),
        (2, "wrong", (2,)),
        (1, "wrong", (0,)),
        (0, "wrong", (1,)),
    ]
    assert found[0].score == pytest.approx(80 / 95)
