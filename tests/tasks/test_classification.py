"""classification.py: metrics against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from warmstart.tasks import classification
from warmstart.tasks.classification import Classification

CLASSES = ("cat", "dog", "tench, Tinca tinca")


def _case(num_classes: int, seed: int = 0, num_samples: int = 300):
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=num_samples)
    logits = rng.normal(size=(num_samples, num_classes)) + 1.5 * np.eye(num_classes)[targets]
    task = Classification(tuple(f"class {i}" for i in range(num_classes)))
    return task, logits.astype(np.float32), targets


def test_evaluate_equals_torchmetrics_and_torch():
    from torchmetrics.functional import classification as reference

    task, logits, targets = _case(8)
    found = task.evaluate(logits, targets)
    scores, truth = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    settings = {"task": "multiclass", "num_classes": 8}
    probabilities = scores.softmax(1)
    expected = {
        "loss": F.cross_entropy(scores, truth),
        "accuracy": reference.accuracy(scores, truth, **settings),
        "top5": reference.accuracy(scores, truth, top_k=5, **settings),
        "f1": reference.f1_score(scores, truth, average="macro", **settings),
        "balanced_accuracy": reference.accuracy(scores, truth, average="macro", **settings),
        "ece": reference.calibration_error(probabilities, truth, n_bins=15, **settings),
    }
    assert list(found) == [*expected, "accuracy_low", "accuracy_high"]
    for name, value in expected.items():
        assert type(found[name]) is float
        assert found[name] == pytest.approx(value.item(), abs=1e-6), name
    assert found["loss"] == pytest.approx(expected["loss"].item(), abs=1e-14)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_evaluate_knows_neither_smoothing_nor_weights_nor_the_chunk(monkeypatch):
    task, logits, targets = _case(5)
    plain = task.evaluate(logits, targets)
    assert "top5" not in plain
    assert Classification(task.classes, 0.1, (1.0, 2.0, 3.0, 4.0, 5.0)).evaluate(logits, targets) == plain
    monkeypatch.setattr(classification, "_MAX_LOGITS_AT_ONCE", 35)
    assert task.evaluate(logits, targets) == plain


def test_evaluate_leaves_its_input_alone():
    task, logits, targets = _case(4)
    before = logits.copy()
    task.evaluate(logits, targets)
    task.scores(logits)
    assert (logits == before).all()


def test_large_logits_stay_finite():
    task = Classification(("a", "b"))
    logits = np.array([[3e4, -3e4], [3e4, -np.inf]], dtype=np.float32)
    assert task.evaluate(logits, np.array([1, 0]))["loss"] == 3e4
    assert task.scores(logits).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_without_a_prediction_have_no_metric(value):
    task, logits, targets = _case(6)
    names = list(task.evaluate(logits, targets))
    logits[3] = value
    found = task.evaluate(logits, targets)
    assert list(found) == names
    assert all(math.isnan(metric) for metric in found.values())
    assert {row["f1"] for row in task.table(logits, targets)} == {None}
    scores = task.scores(logits)
    assert np.isnan(scores[3]).all()
    assert np.isfinite(np.delete(scores, 3, axis=0)).all()


def test_table_names_every_class():
    task, logits, targets = _case(3)
    rows = task.table(logits, targets)
    assert [row["name"] for row in rows] == list(task.classes)
    assert sum(row["support"] for row in rows) == 300
    recalls = [row["recall"] for row in rows]
    assert np.mean(recalls) == pytest.approx(task.evaluate(logits, targets)["balanced_accuracy"])


def test_scores_are_the_softmax():
    task, logits, _ = _case(7)
    scores = task.scores(logits)
    assert scores.dtype == np.float32
    expected = torch.from_numpy(logits).double().softmax(1).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=0)


def test_objective_uses_smoothing_and_weights():
    _, logits, targets = _case(3)
    outputs, truth = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    task = Classification(CLASSES, 0.1, (1.0, 2.5, 0.5))
    loss_sum, weight = task.objective(outputs, truth)
    weights = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)
    expected = F.cross_entropy(outputs, truth, weights, label_smoothing=0.1)
    assert (loss_sum / weight).item() == pytest.approx(expected.item(), rel=1e-13)


def test_weights_first_used_in_inference_mode_still_train():
    task = Classification(("a", "b"), 0.0, (0.123, 4.56))
    outputs, targets = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    with torch.inference_mode():
        task.objective(outputs, targets)
    outputs.requires_grad_()
    task.objective(outputs, targets)[0].backward()
    assert outputs.grad is not None


def test_weights_must_fit_the_classes():
    with pytest.raises(AssertionError, match="2 weights for 3 classes"):
        Classification(CLASSES, 0.0, (1.0, 2.0))
