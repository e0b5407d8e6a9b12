from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from warmstart.errors import UserError
from warmstart.models.heads import HeadChange, fit_head
from warmstart.models.zoo import create


def _model(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, num_classes))


def test_same_classes_keep_the_layer() -> None:
    module = _model()
    layer = module[2]  # type: ignore[index]
    change = fit_head(module, "2", ["a", "b", "c"], ["a", "b", "c"], seed=0)
    assert module[2] is layer  # type: ignore[index]
    assert change == HeadChange("kept", ("a", "b", "c"), (), "the same classes in the same order")


def test_another_order_moves_the_rows() -> None:
    module = _model()
    old = module.get_submodule("2")
    change = fit_head(module, "2", ["a", "b", "c"], ["c", "a"], seed=0)
    new = module.get_submodule("2")
    assert torch.equal(new.weight, old.weight[[2, 0]]) and torch.equal(new.bias, old.bias[[2, 0]])
    assert (change.kind, change.kept, change.new) == ("kept", ("c", "a"), ())


def test_rows_are_kept_by_name_and_others_drawn_from_the_seed() -> None:
    one, two, other = _model(), _model(), _model()
    change = fit_head(one, "2", ["a", "b", "c"], ["b", "x"], seed=4)
    fit_head(two, "2", ["a", "b", "c"], ["b", "x"], seed=4)
    fit_head(other, "2", ["a", "b", "c"], ["b", "x"], seed=5)
    a, b, c = (m.get_submodule("2").weight for m in (one, two, other))
    assert torch.equal(a, b) and torch.equal(a[0], c[0]) and not torch.equal(a[1], c[1])
    assert torch.equal(a[0], _model().get_submodule("2").weight[1])
    assert a[1].abs().max() <= 1 / math.sqrt(8)
    assert (change.kind, change.kept, change.new) == ("mixed", ("b",), ("x",))
    assert change.reason == "1 rows kept by name, 1 made anew, 2 of the source dropped"


def test_no_common_name_is_a_new_head() -> None:
    assert fit_head(_model(), "2", ["a", "b", "c"], ["x", "y", "z"], seed=0).kind == "new"


def test_unknown_names_are_kept_by_count() -> None:
    module = _model()
    change = fit_head(module, "2", None, ["x", "y", "z"], seed=0)
    assert change.kind == "kept" and change.reason == "the weights name no classes; 3 outputs for 3 classes"
    change = fit_head(module, "2", None, ["x", "y"], seed=0)
    assert change.kind == "new" and change.reason == "3 outputs, without names, for 2 classes"
    assert module(torch.zeros(1, 5)).shape == (1, 2)


def test_the_global_generator_is_left_alone() -> None:
    module = _model()
    before = torch.get_rng_state()
    fit_head(module, "2", None, ["x", "y"], seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["timm:regnetx_002", "timm:dla34", "timm:resnetv2_50x1_bit"])
def test_timm_heads_keep_their_books(name: str) -> None:
    made = create(name, num_classes=5, image_size=(64, 64))
    fit_head(made.module, made.head, None, ["x", "y"], seed=0)
    assert made.module.num_classes == 2
    assert made.module.get_classifier() is made.module.get_submodule(made.head)  # type: ignore[operator]
    assert made.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_other_layers_are_refused_by_type() -> None:
    with pytest.raises(UserError, match="the classifier '1' is a ReLU"):
        fit_head(_model(), "1", None, ["x"], seed=0)
    with pytest.raises(UserError, match="is a Conv2d"):
        fit_head(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0", None, ["x"], seed=0)
