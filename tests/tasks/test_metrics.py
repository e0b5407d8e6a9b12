"""metrics.py: against scikit-learn, and by hand where classes are absent."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import classification_report, f1_score

from warmstart.tasks import metrics


def _samples(seed: int, num_classes: int = 6, num_samples: int = 80):
    rng = np.random.default_rng(seed)
    present = rng.permutation(num_classes)[: num_classes - 1]  # one class has no target
    return rng.choice(present, num_samples), rng.integers(num_classes, size=num_samples)


def test_scores_equal_scikit_learn():
    from sklearn import metrics as reference

    for seed in range(10):
        targets, predicted = _samples(seed)
        matrix = metrics.confusion(targets, predicted, 6)
        present = np.unique(targets)
        assert (matrix == reference.confusion_matrix(targets, predicted, labels=range(6))).all()
        assert metrics.accuracy(matrix) == pytest.approx(
            reference.accuracy_score(targets, predicted), abs=1e-12
        )
        f1 = reference.f1_score(targets, predicted, labels=present, average="macro", zero_division=0)
        assert metrics.macro_f1(matrix) == pytest.approx(f1, abs=1e-12)
        recall = reference.recall_score(targets, predicted, labels=present, average="macro")
        assert metrics.balanced_accuracy(matrix) == pytest.approx(recall, abs=1e-12)


def test_per_class_equals_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    targets, predicted = _samples(1, num_classes=4, num_samples=200)
    rows = metrics.per_class(metrics.confusion(targets, predicted, 4), list("abcd"))
    columns = precision_recall_fscore_support(targets, predicted, labels=range(4), zero_division=0)
    for row, *expected in zip(rows, *columns, strict=True):
        found = [row[key] or 0 for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx(expected, abs=1e-12)


def test_confusion_of_parts_sums_to_the_whole():
    targets, predicted = _samples(2)
    parts = [metrics.confusion(targets[s], predicted[s], 6) for s in (slice(30), slice(30, 80), slice(0))]
    whole = metrics.confusion(targets, predicted, 6)
    assert whole.dtype == np.int64
    assert (sum(parts) == whole).all()


def test_what_is_undefined_is_none():
    # b is never predicted, c has no targets, d has neither.
    matrix = metrics.confusion(np.array([0, 0, 1]), np.array([0, 2, 0]), 4)
    a, b, c, d = metrics.per_class(matrix, list("abcd"))
    assert a == {"name": "a", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert b == {"name": "b", "precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert c == {"name": "c", "precision": 0.0, "recall": None, "f1": None, "support": 0}
    assert d == {"name": "d", "precision": None, "recall": None, "f1": None, "support": 0}
    assert metrics.macro_f1(matrix) == pytest.approx(0.25)
    assert metrics.balanced_accuracy(matrix) == pytest.approx(0.25)


def test_confusion_refuses_indices_outside_the_classes():
    with pytest.raises(AssertionError, match=r"target 0\.\.3 with 3 classes"):
        metrics.confusion(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(AssertionError, match="prediction -1"):
        metrics.confusion(np.array([0, 1]), np.array([0, -1]), 3)


def test_top_k_equals_a_stable_sort_and_top_1_equals_argmax():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(200, 7)).astype(np.float32)  # many ties
    targets = rng.integers(7, size=200)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(1, 8):
        assert metrics.top_k_correct(scores, targets, k) == (order[:, :k] == targets[:, None]).sum()
    assert metrics.top_k_correct(scores, targets, 1) == (scores.argmax(axis=1) == targets).sum()


def test_top_k_counts_no_nan_as_right():
    scores = np.array([[np.nan, 1, 0], [2, np.nan, 0], [np.nan] * 3])
    assert metrics.top_k_correct(scores, np.array([0, 0, 2]), 1) == 0
    assert metrics.top_k_correct(scores, np.array([0, 0, 2]), 2) == 1
    assert metrics.top_k_correct(scores, np.array([0, 0, 2]), 3) == 1
    with pytest.raises(AssertionError, match="top 4 of 3 classes"):
        metrics.top_k_correct(scores, np.array([0, 0, 2]), 4)


def _answers(num_classes: int, num: int, seed: int, absent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets without the last `absent` classes, and answers that are right for two of three."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes - absent, num)
    wrong = rng.integers(0, num_classes, num)
    return targets, np.where(rng.random(num) < 2 / 3, targets, wrong)


@pytest.mark.parametrize(("num_classes", "num", "absent"), [(2, 40, 0), (10, 300, 2), (100, 250, 10)])
def test_averages_are_those_of_the_classification_report(num_classes, num, absent):
    """Some classes are never predicted, some have no targets."""
    targets, answers = _answers(num_classes, num, 0, absent)
    names = [f"c{k}" for k in range(num_classes)]
    rows = metrics.per_class(metrics.confusion(targets, answers, num_classes), names)
    report = classification_report(
        targets, answers, labels=np.unique(targets), output_dict=True, zero_division=0
    )
    found = metrics.averages(rows)
    for kind, average in found.items():
        for ours, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1-score"),
            ("support",) * 2,
        ):
            assert average[ours] == pytest.approx(report[f"{kind} avg"][theirs], abs=1e-12)
    for row in rows:
        if row["support"]:
            theirs = report[row["name"][1:]]
            assert (row["precision"] or 0.0) == pytest.approx(theirs["precision"], abs=1e-12)
            assert (row["recall"], row["f1"], row["support"]) == pytest.approx(
                (theirs["recall"], theirs["f1-score"], theirs["support"]), abs=1e-12
            )


def test_nothing_predicted_has_no_averages():
    row = {"precision": None, "recall": None, "f1": None, "support": 3}
    assert metrics.averages([row]) == metrics.averages([{**row, "support": 0}]) == {}


def test_intervals_of_f1_are_those_of_resampled_samples():
    """The slow way: draw the samples themselves, and count again."""
    targets, answers = _answers(4, 150, 1)
    found = metrics.f1_intervals(metrics.confusion(targets, answers, 4), num_resamples=4000)
    rng, values = np.random.default_rng(9), {"macro": [], "weighted": []}
    for _ in range(600):
        rows = rng.integers(0, 150, 150)
        for kind in values:
            values[kind].append(f1_score(targets[rows], answers[rows], average=kind))
    for kind, (low, high) in found.items():
        assert (low, high) == pytest.approx(tuple(np.quantile(values[kind], [0.025, 0.975])), abs=0.02)
        assert low < f1_score(targets, answers, average=kind) < high
    assert metrics.f1_intervals(5 * np.eye(3, dtype=np.int64)) == {"macro": (1, 1), "weighted": (1, 1)}


def test_intervals_of_f1_in_pieces_keep_every_resample(monkeypatch):
    targets, answers = _answers(4, 150, 1)
    matrix = metrics.confusion(targets, answers, 4)
    whole = metrics.f1_intervals(matrix)
    monkeypatch.setattr(metrics, "_MAX_CELLS_AT_ONCE", 100)
    assert metrics.f1_intervals(matrix) == whole, "one stream of random numbers"
