"""Margin heads: what they compute, and what becomes of them between a file and a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from warmstart.config.schema import ModelConfig, TaskConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.heads import fit_kind
from warmstart.models.margin import DEFAULTS, CosineClassifier, resolve_margin
from warmstart.records import Margin

TWO = ("closed", "open")
COSFACE = TaskConfig(margin_method="cosface")


def made(name: str = "builtin:fashion_cnn", task: TaskConfig = COSFACE, **settings: object) -> BuiltModel:
    values = {"weights": "none", **settings}
    return build(ModelConfig(name=name, **values), {"image_size": (28, 28)}, TWO, 0, task)


def saved(built: BuiltModel, path: Path) -> str:
    save_file(built.module.state_dict(), path, metadata_for(built))
    return str(path)


def test_logits_are_scaled_cosines_whatever_the_lengths() -> None:
    torch.manual_seed(0)
    layer = CosineClassifier(5, 3, Margin("cosface", 0.1, 12, 6)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    w = layer.weight.detach().numpy()
    expected = 6 * (x.numpy() @ w.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=1)
    assert layer(x).detach().numpy() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(layer(1000 * x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float()).dtype == torch.float32


def test_the_last_layer_of_any_classifier_becomes_one_and_its_block_says_so() -> None:
    for name in ("builtin:fashion_cnn", "timm:resnet10t", "torchvision:resnet18"):
        built = made(name)
        layer = built.module.get_submodule(built.head)
        assert isinstance(layer, CosineClassifier) and layer.weight.shape[0] == len(TWO)
        assert built.blocks[-1].name == "margin_head"
        assert built.blocks[-1].parameters == (f"{built.head}.weight",)
        assert (built.head_change.kind, built.margin) == ("new", DEFAULTS["cosface"])


def test_a_convolution_cannot_be_one() -> None:
    with pytest.raises(UserError, match="is a convolution"):
        made("torchvision:squeezenet1_0")


def test_a_file_gives_the_same_logits_again_and_keeps_its_head(tmp_path: Path) -> None:
    task = TaskConfig(margin_method="arcface", margin=0.3, margin_eval_scale=5)
    one = made(task=task)
    path = saved(one, tmp_path / "m.safetensors")
    images = torch.rand(4, 1, 28, 28)
    for again in (
        build(ModelConfig(weights=path), {}, None, 7),
        build(ModelConfig(weights=path), {}, TWO, 7),
    ):
        assert torch.equal(again.module.eval()(images), one.module.eval()(images))
        assert again.margin == one.margin == Margin("arcface", 0.3, 8.0, 5.0)
        assert again.head_change.kind == "kept"


def test_new_classes_keep_the_rows_of_known_ones(tmp_path: Path) -> None:
    one = made()
    path = saved(one, tmp_path / "m.safetensors")
    other = build(ModelConfig(weights=path), {}, ("open", "half"), 3)
    old, new = one.module.get_submodule(one.head), other.module.get_submodule(other.head)
    assert isinstance(new, CosineClassifier) and torch.equal(new.weight[0], old.weight[1])  # type: ignore[index]
    assert (other.head_change.kept, other.head_change.new) == (("open",), ("half",))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("cosface", "arcface", "the weights have a cosface head, and a arcface head is asked for"),
        ("cosface", "none", "the weights have a cosface head, and a linear classifier is asked for"),
        ("none", "cosface", "the weights have a linear classifier, and a cosface head is asked for"),
    ],
)
def test_a_head_of_another_kind_is_initialised_anew_and_says_so(
    first: str, second: str, words: str, tmp_path: Path
) -> None:
    path = saved(made(task=TaskConfig(margin_method=first)), tmp_path / "m.safetensors")
    again = build(ModelConfig(weights=path), {}, TWO, 3, TaskConfig(margin_method=second))
    assert again.head_change.kind == "new" and words in again.head_change.reason
    twin = build(ModelConfig(weights=path), {}, TWO, 3, TaskConfig(margin_method=second))
    weights = [model.module.get_submodule(model.head).weight for model in (again, twin)]
    assert torch.equal(*weights), "drawn from the seed alone"  # type: ignore[arg-type]


def test_other_values_are_no_other_head() -> None:
    module = nn.Sequential(nn.Linear(3, 4), CosineClassifier(4, 2, DEFAULTS["cosface"]))
    before = module[1].weight.clone()
    wider = Margin("cosface", 0.4, 20, 6)
    assert fit_kind(module, "1", wider, 0) == "" and torch.equal(module[1].weight, before)
    assert module[1].margin == wider


def test_a_pair_is_one_row_again_behind_a_margin_head(tmp_path: Path) -> None:
    plain = made("builtin:ocec-c8-b2", TaskConfig())
    with_margin = build(ModelConfig(weights=saved(plain, tmp_path / "1.safetensors")), {}, TWO, 1, COSFACE)
    assert with_margin.module.get_submodule("head.2").weight.shape == (2, 8)  # type: ignore[union-attr]
    second = ModelConfig(weights=saved(with_margin, tmp_path / "2.safetensors"))
    back = build(second, {}, TWO, 2, TaskConfig(margin_method="none"))
    assert back.module.get_submodule("head.2").weight.shape == (1, 8)  # type: ignore[union-attr]
    again = build(ModelConfig(weights=saved(back, tmp_path / "3.safetensors")), {}, None, 3)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.module.eval()(images), back.module.eval()(images))


def test_values_are_the_weights_own_before_the_methods() -> None:
    own = Margin("cosface", 0.3, 10.0, 5.0)
    assert resolve_margin(TaskConfig(), own) == own
    assert resolve_margin(TaskConfig(margin=0.0), own) == Margin("cosface", 0.0, 10.0, 5.0)
    assert resolve_margin(TaskConfig(margin_method="arcface"), own) == DEFAULTS["arcface"]
    assert resolve_margin(TaskConfig(margin_method="none"), own) is None
    assert resolve_margin(TaskConfig(), None) is None
    with pytest.raises(UserError, match="the weights have no margin head"):
        resolve_margin(TaskConfig(margin=0.0), None)


def test_it_can_be_compiled_in_one_piece() -> None:
    layer = CosineClassifier(5, 3, DEFAULTS["cosface"])
    x = torch.randn(4, 5)
    whole = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.allclose(whole(x), layer(x))
