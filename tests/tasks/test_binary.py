"""binary.py and the positive class of Classification: against brute force and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from warmstart.config.threshold import parse_threshold
from warmstart.records import Decision
from warmstart.tasks.binary import choose_threshold, positive_metrics
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel


def _case(
    num: int = 200, share: float = 0.2, levels: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wanted = rng.random(num) < share
    scores = np.clip(0.4 * wanted + 0.6 * rng.random(num), 0, 1)
    return (np.round(scores * levels) / levels if levels else scores).astype(np.float32), wanted


def _every_threshold(scores: np.ndarray) -> np.ndarray:
    """All that make a difference."""
    return np.append(np.unique(scores), 2.0)


@pytest.mark.parametrize("levels", [0, 9])
@pytest.mark.parametrize("costs", [(1.0, 1.0), (10.0, 1.0), (1.0, 50.0)])
def test_no_threshold_costs_less(costs: tuple[float, float], levels: int) -> None:
    scores, wanted = _case(levels=levels)
    miss, alarm = costs

    def cost(threshold: float) -> float:
        said = scores >= threshold
        return miss * (wanted & ~said).sum() + alarm * (said & ~wanted).sum()

    rule = parse_threshold(f"cost={miss:g}:{alarm:g}")
    assert rule is not None
    chosen = cost(choose_threshold(rule, scores, wanted))
    assert chosen == min(map(cost, _every_threshold(scores)))


@pytest.mark.parametrize("levels", [0, 9])
@pytest.mark.parametrize("recall", [0.5, 0.95, 1.0])
def test_the_recall_is_reached_with_the_fewest_false_alarms(recall: float, levels: int) -> None:
    scores, wanted = _case(levels=levels)
    rule = parse_threshold(f"recall>={recall:g}")
    assert rule is not None
    said = scores >= choose_threshold(rule, scores, wanted)
    assert recall_score(wanted, said) >= recall
    fewest = min(
        (s & ~wanted).sum()
        for s in (scores >= t for t in _every_threshold(scores))
        if recall_score(wanted, s) >= recall
    )
    assert (said & ~wanted).sum() == fewest


def test_f1_is_the_highest_and_few_positives_decide_nothing() -> None:
    rule = parse_threshold("f1")
    assert rule is not None
    scores, wanted = _case()
    best = max(f1_score(wanted, scores >= t) for t in _every_threshold(scores))
    assert f1_score(wanted, scores >= choose_threshold(rule, scores, wanted)) == best
    few = np.zeros(50, dtype=bool)
    few[:4] = True
    assert choose_threshold(rule, np.linspace(0, 1, 50), few) == 0.5


def test_positive_metrics_equal_scikit_learns() -> None:
    scores, wanted = _case(levels=9)
    said = scores > 0.4
    expected = [f(wanted, said) for f in (f1_score, precision_score, recall_score)]
    assert list(positive_metrics(said, wanted).values()) == pytest.approx(expected, abs=1e-15)
    nothing = np.zeros(5, dtype=bool)
    assert set(positive_metrics(nothing, nothing).values()) == {0.0}


@pytest.mark.parametrize("positive", ["open", "closed"])
def test_a_task_reports_both_at_half_and_at_its_threshold(positive: str) -> None:
    scores, wanted = _case()
    classes = ("closed", "open")
    number = classes.index(positive)
    targets = np.where(wanted, number, 1 - number)
    logits = np.zeros((len(scores), 2), dtype=np.float32)
    with np.errstate(divide="ignore"):
        logits[:, number] = np.clip(np.log(scores) - np.log1p(-scores), -50, 50)
    task = Classification(classes, decision=Decision(positive), rule=parse_threshold("f1"))
    plain = task.evaluate(logits, targets)
    assert "threshold" not in plain
    decided = task.decided(logits, targets)
    found = decided.evaluate(logits, targets)
    assert {name: found[name] for name in plain} == plain
    assert found["f1_positive"] == pytest.approx(f1_score(targets, logits.argmax(1), pos_label=number))
    at = f1_score(targets, decided.answers(logits), pos_label=number)
    assert found["f1_positive_at_threshold"] == pytest.approx(at) and at > found["f1_positive"]
    row = decided.table(logits, targets)[number]
    assert row["f1"] == pytest.approx(at), "tables are of the answers that are given"
    assert replace(decided, rule=None).decided(logits, targets).decision == decided.decision


def test_without_a_threshold_the_higher_score_answers() -> None:
    task = Classification(("a", "b"))
    logits = np.array([[1, 2], [2, 1], [0, 0]], dtype=np.float32)
    assert task.answers(logits).tolist() == [1, 0, 0] and task.positive == 1


def test_a_threshold_between_two_neighbouring_scores_parts_them() -> None:
    """In float32 the middle is one of the two: where it is the lower one, that would reach it."""
    upper = np.float32(1) - np.float32(2.0**-24)
    lower = np.nextafter(upper, np.float32(0))
    for high, low in ((upper, lower), (np.float32(1), upper)):
        scores = np.repeat([[1 - high, high], [1 - low, low]], 8, axis=0).astype(np.float32)
        wanted = np.repeat([1, 0], 8)
        threshold = choose_threshold(parse_threshold("cost=1:1"), scores[:, 1], wanted == 1)
        task = Classification(("a", "b"), decision=Decision("b", threshold))
        assert task.answers_by(scores).tolist() == wanted.tolist()
        sets = MultiLabel(("b",), thresholds=(threshold,))
        assert not sets.num_wrong(scores[:, 1:], wanted[:, None]).any()
