"""multilabel.py and task.py: metrics, the objective and class weights against torch and torchmetrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from warmstart.config.schema import Config, TaskConfig
from warmstart.errors import UserError
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.task import make_task, resolve_metric

CLASSES = ("ant", "bee", "cat", "dog", "elk")


def _case(num: int = 120, seed: int = 0) -> tuple[MultiLabel, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((num, 5)) < 0.3).astype(np.uint8)
    logits = (rng.normal(size=(num, 5)) + 2 * targets - 1).astype(np.float32)
    return MultiLabel(CLASSES), logits, targets


def test_evaluate_equals_torchmetrics_and_torch() -> None:
    from torchmetrics.functional import classification as reference

    task, logits, targets = _case()
    found = task.evaluate(logits, targets)
    scores, truth = torch.from_numpy(logits).double(), torch.from_numpy(targets).long()
    expected = {
        "loss": F.binary_cross_entropy_with_logits(scores, truth.double()),
        "map": reference.multilabel_average_precision(scores.sigmoid(), truth, 5),
        "f1": reference.multilabel_f1_score(scores.sigmoid(), truth, 5, average="macro"),
        "f1_micro": reference.multilabel_f1_score(scores.sigmoid(), truth, 5, average="micro"),
        "exact_match": reference.multilabel_exact_match(scores.sigmoid(), truth, 5),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), abs=1e-6), name
    assert found["loss"] == pytest.approx(expected["loss"].item(), abs=1e-14)


def test_thresholds_move_the_sets_and_nothing_else() -> None:
    task, logits, targets = _case()
    scores = task.scores(logits)
    plain = task.evaluate(logits, targets)
    tuned = task.with_best_thresholds(scores, targets)
    found = tuned.evaluate(logits, targets)
    assert found["f1"] > plain["f1"]
    assert (found["map"], found["loss"]) == (plain["map"], plain["loss"])
    none = replace(task, thresholds=(1.1,) * 5).evaluate(logits, targets)
    assert none["f1"] == 0 and none["exact_match"] == (targets.sum(axis=1) == 0).mean()
    assert ((tuned.num_wrong(scores, targets) == 0).mean()) == pytest.approx(found["exact_match"])


def test_the_table_has_a_row_per_label() -> None:
    task, logits, targets = _case()
    targets[:, 1] = 0
    logits[:, 2] = -5
    rows = replace(task, thresholds=(0.5, 0.5, 0.5, 0.3, 0.5)).table(logits, targets)
    assert [row["name"] for row in rows] == list(CLASSES)
    assert set(rows[0]) == {"name", *task.columns}
    assert rows[1] | {"precision": None} == {
        "name": "bee", "threshold": 0.5, "precision": None, "recall": None, "f1": None, "ap": None, "support": 0,
    }  # fmt: skip
    assert (rows[2]["precision"], rows[2]["recall"], rows[2]["f1"]) == (None, 0, 0)
    assert rows[3]["threshold"] == 0.3
    predicted, wanted = task.scores(logits)[:, 0] >= 0.5, targets[:, 0] == 1
    assert rows[0]["precision"] == pytest.approx((predicted & wanted).sum() / predicted.sum())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_have_no_metrics(value: float) -> None:
    task, logits, targets = _case()
    logits[7, 2] = value
    assert all(math.isnan(metric) for metric in task.evaluate(logits, targets).values())
    row = task.table(logits, targets)[0]
    assert row["support"] > 0 and row["ap"] is None and row["f1"] is None


def test_scores_of_extreme_logits() -> None:
    scores = MultiLabel(("a", "b")).scores(np.array([[-1000, 1000], [0, math.nan]], np.float32))
    assert scores[0].tolist() == [0, 1] and scores[1, 0] == 0.5 and math.isnan(scores[1, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 0.0, 3.0)])
def test_the_objective_is_torchs_mean_and_a_window_cut_in_parts_the_same(smoothing, weights) -> None:
    _, logits, targets = _case(12)
    task = MultiLabel(CLASSES, smoothing, weights)
    outputs, truth = torch.from_numpy(logits).double().requires_grad_(), torch.from_numpy(targets)
    smooth = truth.double() * (1 - smoothing) + smoothing / 2
    positive = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(outputs, smooth, pos_weight=positive)
    (gradient,) = torch.autograd.grad(expected, outputs)
    parts = [task.objective(outputs[rows], truth[rows]) for rows in (slice(0, 5), slice(5, 6), slice(6, 12))]
    total = sum(part for part, _ in parts) / sum(weight for _, weight in parts)
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    (found,) = torch.autograd.grad(total, outputs)
    assert torch.allclose(found, gradient, atol=1e-14)


def test_half_precision_outputs_are_summed_exactly() -> None:
    task, logits, targets = _case()
    loss_sum, weight = task.objective(torch.from_numpy(logits).bfloat16(), torch.from_numpy(targets))
    assert loss_sum.dtype == weight.dtype == torch.float32 and weight == 600


# ---- from settings


def _make(settings: dict[str, object], targets: np.ndarray) -> object:
    if targets.ndim == 2:
        counts = targets.sum(axis=0).tolist()
    else:
        counts = np.bincount(targets, minlength=5).tolist()
    config = Config(task=TaskConfig(**settings))
    return make_task(config, CLASSES, targets, dict(zip(CLASSES, counts, strict=True)))


def test_the_targets_decide_on_the_task() -> None:
    _, _, targets = _case()
    assert _make({"label_smoothing": 0.1}, targets) == MultiLabel(CLASSES, 0.1)
    assert _make({}, np.arange(5)) == Classification(CLASSES)


def test_balanced_makes_both_sides_of_a_label_weigh_the_same() -> None:
    _, _, targets = _case()
    task = _make({"class_weights": "balanced"}, targets)
    positives = targets.sum(axis=0)
    assert task.class_weights == pytest.approx((120 - positives) / positives)
    targets[:, 3] = 1
    with pytest.raises(UserError, match="none or all of the 120 training images have 'dog'"):
        _make({"class_weights": "balanced"}, targets)


def test_wrong_class_weights_are_refused() -> None:
    _, _, targets = _case()
    assert _make({"class_weights": "bee=3"}, targets).class_weights == (1, 3, 1, 1, 1)
    with pytest.raises(UserError, match=r"no class is named 'bea'(.|\n)*'bee'\?"):
        _make({"class_weights": "bea=3"}, targets)


def test_the_metric_that_selects_belongs_to_the_task() -> None:
    many, one = MultiLabel(CLASSES), Classification((*CLASSES, "fox"))
    assert (resolve_metric("auto", many), resolve_metric("auto", one)) == ("map", "accuracy")
    for name in ("f1", "f1_micro", "exact_match", "loss", "map"):
        assert resolve_metric(name, many) == name
    for name, task in (("accuracy", many), ("ece", many), ("top5", many), ("map", one), ("exact_match", one)):
        with pytest.raises(UserError, match=f"--select-by {name}: a run of {task.name} does not measure it"):
            resolve_metric(name, task)
    assert resolve_metric("top5", one) == "top5"
    with pytest.raises(UserError, match="top5 cannot choose among 5 classes"):
        resolve_metric("top5", Classification(CLASSES))
