"""margin.py in float64, against the formulas of the papers written out item by item."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from warmstart.records import Margin
from warmstart.tasks.classification import Classification
from warmstart.tasks.margin import with_margin

COSFACE, ARCFACE = Margin("cosface", 0.18, 12.0, 6.0), Margin("arcface", 0.5, 8.0, 4.0)


def _cosines(num: int = 40, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(num_classes, (num,))
    return torch.rand(num, num_classes, dtype=torch.float64) * 1.98 - 0.99, targets


@pytest.mark.parametrize("margin", [COSFACE, ARCFACE], ids=lambda m: m.method)
def test_the_objective_is_the_papers_formula(margin: Margin) -> None:
    cosines, targets = _cosines()
    expected = 0.0
    for row, target in zip(cosines.tolist(), targets.tolist(), strict=True):
        own = row[target]
        if margin.method == "cosface":
            moved = own - margin.margin
        elif math.acos(own) + margin.margin < math.pi:
            moved = math.cos(math.acos(own) + margin.margin)
        else:
            moved = own - margin.margin * math.sin(margin.margin)
        logits = [margin.scale * (moved if k == target else c) for k, c in enumerate(row)]
        expected += math.log(sum(map(math.exp, logits))) - logits[target]
    task = Classification(("a", "b", "c"), margin=margin)
    loss, weight = task.objective(margin.eval_scale * cosines, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-12) and weight.item() == len(targets)


@pytest.mark.parametrize("margin", [COSFACE, ARCFACE], ids=lambda m: m.method)
def test_shares_of_one_class_are_its_index_and_the_margin_goes_by_the_share(margin: Margin) -> None:
    cosines, targets = _cosines()
    logits = margin.eval_scale * cosines
    by_index = with_margin(logits, targets, margin)
    assert torch.equal(with_margin(logits, F.one_hot(targets, 3).double(), margin), by_index)
    shares = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    row = torch.tensor([[0.3, -0.2, 0.6]], dtype=torch.float64)
    found = (with_margin(margin.eval_scale * row, shares, margin) / margin.scale)[0].tolist()
    for value, cosine, share in zip(found, row[0].tolist(), shares[0].tolist(), strict=True):
        turn = margin.margin * share
        moved = cosine - turn if margin.method == "cosface" else math.cos(math.acos(cosine) + turn)
        assert value == pytest.approx(moved, abs=1e-12)


@pytest.mark.parametrize("margin", [COSFACE, ARCFACE], ids=lambda m: m.method)
def test_gradients_are_those_of_the_formula_and_finite_at_the_ends(margin: Margin) -> None:
    cosines, targets = _cosines(6)
    assert torch.autograd.gradcheck(
        lambda c: with_margin(c, targets, margin), (cosines.requires_grad_(),), atol=1e-6
    )
    ends = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    with_margin(margin.eval_scale * ends, torch.tensor([0, 0]), margin).sum().backward()
    assert ends.grad is not None and ends.grad.isfinite().all()


def test_a_margin_makes_right_answers_cost_more_and_none_costs_nothing_more() -> None:
    cosines, targets = _cosines()
    costs = {}
    for name, share in (("none", 0.0), ("half", 0.5), ("whole", 1.0)):
        task = Classification(("a", "b", "c"), margin=COSFACE).at_margin(share)
        costs[name] = task.objective(COSFACE.eval_scale * cosines, targets)[0].item()
    plain = F.cross_entropy(COSFACE.scale * cosines, targets, reduction="sum").item()
    assert costs["none"] == pytest.approx(plain, rel=1e-12)
    assert costs["none"] < costs["half"] < costs["whole"]


def test_evaluation_knows_no_margin() -> None:
    cosines, targets = _cosines()
    logits = (COSFACE.eval_scale * cosines).float().numpy()
    with_head = Classification(("a", "b", "c"), margin=COSFACE).evaluate(logits, targets.numpy())
    assert with_head == Classification(("a", "b", "c")).evaluate(logits, targets.numpy())
