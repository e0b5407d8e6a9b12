"""Metrics of stored answers are those that evaluation measures, and resamples are paired and centred."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.analysis.compare.answers import Answers
from warmstart.analysis.compare.measures import measure, metric_names
from warmstart.analysis.compare.sides import Side
from warmstart.records import Decision
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

NUM = 150


def _answers(task, scores, targets, **changes) -> Answers:
    ids = tuple(map(str, range(len(scores))))
    return Answers(Side("x"), task.name, task.classes, ids, targets, scores, **changes)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_one_class_per_image_is_measured_as_in_evaluation(num_classes):
    rng = np.random.default_rng(num_classes)
    classes = tuple(f"c{k}" for k in range(num_classes))
    targets = rng.integers(num_classes, size=NUM)
    logits = (rng.normal(size=(NUM, num_classes)) + 1.5 * np.eye(num_classes)[targets]).astype(np.float32)
    task = Classification(classes)
    found, wanted = measure([_answers(task, task.scores(logits), targets)]), task.evaluate(logits, targets)
    for name in metric_names("classification", num_classes):
        assert found.overall[name][0, 0] == pytest.approx(wanted[name], abs=1e-6), name
    table = task.table(logits, targets)
    assert found.by_class[0, 0] == pytest.approx([row["recall"] for row in table])
    assert found.support.tolist() == [row["support"] for row in table]
    assert found.cost[0].mean() == pytest.approx(1 - wanted["accuracy"])
    # A bootstrap of a share is binomial: its spread is known.
    deviation = np.sqrt(wanted["accuracy"] * (1 - wanted["accuracy"]) / NUM)
    assert found.overall["accuracy"][0, 1:].std() == pytest.approx(deviation, rel=0.1)


def test_a_threshold_is_in_force():
    rng = np.random.default_rng(0)
    targets = rng.integers(2, size=NUM)
    logits = rng.normal(size=(NUM, 2)).astype(np.float32)
    decision = Decision("c1", 0.3)
    task = Classification(("c0", "c1"), decision=decision)
    found = measure([_answers(task, task.scores(logits), targets, decision=decision)])
    wanted = task.evaluate(logits, targets)
    for name in ("accuracy", "f1", "f1_positive"):
        assert found.overall[name][0, 0] == pytest.approx(wanted[f"{name}_at_threshold"])


def test_sets_are_measured_as_in_evaluation():
    rng = np.random.default_rng(0)
    targets = (rng.random((NUM, 4)) < 0.3).astype(np.uint8)
    logits = (rng.normal(size=(NUM, 4)) + 2 * targets - 1).astype(np.float32)
    task = MultiLabel(tuple("abcd"), thresholds=(0.5, 0.4, 0.6, 0.5))
    found = measure([_answers(task, task.scores(logits), targets, cuts=task.thresholds)])
    wanted = task.evaluate(logits, targets)
    for name in metric_names("multi-label", 4):
        assert found.overall[name][0, 0] == pytest.approx(wanted[name], abs=1e-6), name
    assert found.by_class[0, 0] == pytest.approx([row["f1"] for row in task.table(logits, targets)])
    assert (found.cost[0] == task.num_wrong(task.scores(logits), targets)).all()


def test_masks_are_measured_as_in_evaluation():
    import torch

    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (20, 8, 8), generator=generator)
    masks[:, :2] = 255
    outputs = torch.randn(20, 3, 8, 8, generator=generator)
    task = Segmentation(("a", "b", "c"))
    rows = task.statistics(outputs, masks).numpy()
    found, wanted = measure([_answers(task, rows, None)]), task.evaluate(rows)
    for name in metric_names("segmentation", 3):
        assert found.overall[name][0, 0] == pytest.approx(wanted[name]), name
    assert found.by_class[0, 0] == pytest.approx([row["iou"] for row in task.table(rows)])


def test_resamples_are_the_same_for_both_models(made):
    """So the difference of a model from itself is nothing in every one of them."""
    targets = np.arange(90) % 3
    right = np.random.default_rng(0).random(90) < 0.7
    found = measure([made(right, targets), made(right, targets)])
    for values in found.overall.values():
        assert (values[0] == values[1]).all() and values[0, 1:].std() >= 0
    assert found.overall["accuracy"][0, 1:].std() > 0
