"""label_errors.py: against the confident joint of the paper counted cell by cell, and on labels that were changed."""

from __future__ import annotations

import numpy as np

from warmstart.tasks.label_errors import likely_mislabelled


def _noisy(
    num: int = 400, num_classes: int = 3, share: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = rng.integers(num_classes, size=num)
    logits = rng.normal(size=(num, num_classes)) + 3.5 * np.eye(num_classes)[true]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = np.where(rng.random(num) < share, (true + rng.integers(1, num_classes, num)) % num_classes, true)
    return scores, given, true


def test_they_are_the_off_diagonal_of_the_confident_joint() -> None:
    scores, given, _ = _noisy()
    thresholds = [scores[given == k, k].mean() for k in range(3)]
    expected = {}
    for i, row in enumerate(scores):
        above = [k for k in range(3) if row[k] >= thresholds[k]]
        if above and (best := max(above, key=lambda k: row[k])) != given[i]:
            expected[i] = best
    places, suggested = likely_mislabelled(scores, given)
    assert dict(zip(places.tolist(), suggested.tolist(), strict=True)) == expected
    margins = scores[places, given[places]] - scores[places, suggested]
    assert (np.diff(margins) >= 0).all()


def test_changed_labels_are_found_with_their_own_class() -> None:
    scores, given, true = _noisy()
    places, suggested = likely_mislabelled(scores, given)
    changed = np.flatnonzero(given != true)
    found = np.isin(changed, places).mean()
    right = (given != true)[places].mean()
    assert found > 0.6 and right > 0.95, (found, right)
    hits = np.isin(places, changed)
    assert (suggested[hits] == true[places[hits]]).mean() > 0.9


def test_a_class_without_labels_is_never_suggested() -> None:
    scores = np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    places, suggested = likely_mislabelled(scores, np.array([0, 0, 1]))
    assert 2 not in suggested.tolist() and len(places) == 0
