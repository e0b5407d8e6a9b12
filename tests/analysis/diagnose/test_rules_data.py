"""Rules about images and labels. K = 10 classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from warmstart.analysis.diagnose.evidence import Answers, Copies
from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.rules_data import (
    collapsed,
    imbalance,
    label_noise,
    leakage,
    splits_differ,
    val_too_small,
)
from warmstart.run.reader import Run

NAMES = tuple("abcdefghij")


def answers(said: np.ndarray, targets: np.ndarray, confidence: np.ndarray) -> Answers:
    """Scores with `confidence` for the class that is said, the rest shared."""
    scores = np.repeat(((1 - confidence) / 9)[:, None], 10, axis=1)
    scores[np.arange(len(said)), said] = confidence
    return Answers(tuple(map(str, range(len(said)))), targets, scores.astype(np.float32), NAMES)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    truth = rng.integers(10, size=400)
    return rng, truth


def test_even_and_confident_mistakes_are_label_noise(drawn, curves):
    rng, truth = drawn
    is_wrong = rng.random(400) < 0.3
    targets = np.where(is_wrong, (truth + rng.integers(1, 10, 400)) % 10, truth)
    found = label_noise(curves([0.7]), answers(truth, targets, rng.uniform(0.7, 0.95, 400)))
    assert found is not None
    assert found.numbers["share"] == pytest.approx(is_wrong.mean(), abs=0.1)
    assert found.changes == {"task.label_smoothing": 0.1}


def test_a_weak_model_that_confuses_pairs_is_not_label_noise(drawn, curves):
    """As many mistakes, each between a class and its neighbour."""
    rng, truth = drawn
    said = np.where(rng.random(400) < 0.3, truth ^ 1, truth)
    assert label_noise(curves([0.7]), answers(said, truth, rng.uniform(0.7, 0.95, 400))) is None


def test_mistakes_that_the_model_doubts_are_not_label_noise(drawn, curves):
    rng, truth = drawn
    wrong = rng.random(400) < 0.3
    said = np.where(wrong, (truth + rng.integers(1, 10, 400)) % 10, truth)
    confidence = np.where(wrong, 0.3, rng.uniform(0.7, 0.95, 400))
    assert label_noise(curves([0.7]), answers(said, truth, confidence)) is None


def test_classes_that_are_never_answered(drawn, curves):
    _, truth = drawn
    said = np.where(truth >= 8, 0, truth)
    found = collapsed(curves([0.7]), answers(said, truth, np.full(400, 0.9)))
    assert found is not None and found.numbers["classes"] == ["i", "j"]
    assert collapsed(curves([0.7]), answers(truth, truth, np.full(400, 0.9))) is None


def test_leakage_by_share(curves):
    found = leakage(curves([0.9]), Copies(40, 100, ("v/1.png = t/1.png",)))
    assert found is not None and found.score > 0.9 and "v/1.png = t/1.png" in found.evidence[0]
    assert found.data == "drop copies"
    assert leakage(curves([0.9]), Copies(1, 1000, ("a = b",))) is None


@pytest.mark.parametrize("num, is_small", [(64, True), (140, True), (400, False)])
def test_a_small_val(curves, num, is_small):
    found = val_too_small(curves([0.5, 0.55, 0.6], num=num))
    assert (found is not None) is is_small
    if found is not None:
        assert found.numbers["half_width"] == pytest.approx(1.96 * np.sqrt(0.6 * 0.4 / num))


def test_splits_that_were_cut_in_order(changed):
    def cut(resolved):
        resolved["data"]["counts"] |= {
            "train": {"ant": 40, "bee": 40, "cat": 4},
            "val": {"ant": 0, "bee": 2, "cat": 30},
        }

    found = splits_differ(of_run(Run(changed(resolved=cut))))
    assert found is not None and found.data == "divide"
    assert found.numbers["lacking"] == ["ant"]
    assert found.numbers["distance"] == pytest.approx(30 / 32 - 4 / 84)


def test_splits_that_were_drawn(diagnosed_run):
    assert splits_differ(of_run(Run(diagnosed_run))) is None


def test_imbalance_needs_a_class_that_suffers(changed):
    def rare(resolved):
        resolved["data"]["counts"]["train"] |= {"ant": 95, "bee": 5, "cat": 95}

    history = of_run(Run(changed(resolved=rare)))

    def with_recall(mean_recall: float):
        metrics = {"accuracy": 0.9, "balanced_accuracy": mean_recall}
        points = tuple(replace(v, val={**v.val, **metrics}) for v in history.validations)
        return replace(history, validations=points)

    found = imbalance(with_recall(0.6))
    assert found is not None and found.numbers["rarest"] == "bee"
    assert found.changes["data.sampler"] == "balanced"
    assert imbalance(with_recall(0.88)) is None


@pytest.mark.parametrize("num_rare, hits, is_named", [(15, 15, True), (60, 60, False), (60, 50, True)])
def test_a_val_with_few_images_of_a_rare_class_shows_nothing_of_it(changed, num_rare, hits, is_named):
    """All of 15 right may be 80 % as well; of 60 it is 94 %."""
    num_others = 19 * num_rare

    def rare(resolved):
        resolved["data"]["counts"] |= {
            "train": {"ant": num_others, "bee": num_rare},
            "val": {"ant": num_others, "bee": num_rare},
        }

    history = of_run(Run(changed(resolved=rare)))
    metrics = {
        "accuracy": (num_others + hits) / (num_others + num_rare),
        "balanced_accuracy": (1 + hits / num_rare) / 2,
    }
    points = tuple(replace(v, val={**v.val, **metrics}) for v in history.validations)
    found = imbalance(replace(history, validations=points))
    assert (found is not None) is is_named
    if found is not None and num_rare == 15:
        assert (
            found.score < 0.7
            and "recall of rare classes on val is 1.00, by 15 images: it may be 0.80" in (found.evidence[1])
        )


def test_a_val_of_rare_classes_alone_says_nothing_of_the_others(changed):
    def rare(resolved):
        resolved["data"]["counts"] |= {"train": {"ant": 95, "bee": 5}, "val": {"ant": 0, "bee": 5}}

    history = of_run(Run(changed(resolved=rare)))
    metrics = {"accuracy": 1.0, "balanced_accuracy": 1.0}
    points = tuple(replace(v, val={**v.val, **metrics}) for v in history.validations)
    with np.errstate(all="raise"):
        assert imbalance(replace(history, validations=points)) is None


def test_a_model_that_knows_nothing_says_nothing_of_labels(drawn, curves):
    """One of seven right, and sure of it: its mistakes are spread over all pairs as those of wrong labels are."""
    rng, truth = drawn
    said = np.where(rng.random(400) < 0.05, truth, rng.integers(10, size=400))
    assert label_noise(curves([0.1]), answers(said, truth, rng.uniform(0.7, 0.95, 400))) is None
