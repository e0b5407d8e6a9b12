"""Recipes: what makes a compressed model of a name, read from a file of weights alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests import fresh
from torch import nn
from torch.nn import functional

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import build, metadata_for
from warmstart.models.recipe import LOW_RANK, SEPARABLE, apply, difference, factors, put
from warmstart.models.tensor_file import TensorFile
from warmstart.models.weights import read_weights
from warmstart.models.zoo import create, outline
from warmstart.records import Edit, Recipe
from warmstart.run.writer import write_whole

RESNET, VIT = "timm:resnet10t", "timm:test_vit"


def small(name, classes=("a", "b", "c"), **sizes):
    settings = ModelConfig(name=name, weights="none")
    return build(settings, {"image_size": (32, 32), **sizes}, classes, seed=0)


def cut_channels(module, first, norm, second, keep):
    """The reference: the first `keep` channels between two convolutions, by hand."""
    made = copy.deepcopy(module)
    a, b, n = made.get_submodule(first), made.get_submodule(second), made.get_submodule(norm)
    a.out_channels, b.in_channels, n.num_features = keep, keep, keep
    a.weight, b.weight = nn.Parameter(a.weight[:keep]), nn.Parameter(b.weight[:, :keep])
    n.weight, n.bias = nn.Parameter(n.weight[:keep]), nn.Parameter(n.bias[:keep])
    n.running_mean, n.running_var = n.running_mean[:keep], n.running_var[:keep]
    return made


def saved(built, module, recipe, tmp_path):
    """A file of the edited model."""
    file = tmp_path / "model.safetensors"
    done = replace(built, module=module, recipe=recipe)
    write_whole(file, TensorFile(module.state_dict(), metadata_for(done)))
    return file


def pruned(built):
    return cut_channels(built.module, "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", 24)


def test_difference_names_what_got_smaller():
    built = small(RESNET)
    edit = difference(built.module, pruned(built))
    assert edit.kind == "resize"
    assert edit.layers == {
        "layer1.0.conv1": {"out_channels": 24},
        "layer1.0.bn1": {"num_features": 24},
        "layer1.0.conv2": {"in_channels": 24},
    }
    assert edit.shapes["layer1.0.conv1.weight"] == (24, None, None, None)
    assert edit.shapes["layer1.0.bn1.running_var"] == (24,)
    assert len(edit.shapes) == 6


def test_difference_refuses_other_layers():
    built = small(RESNET)
    other = copy.deepcopy(built.module)
    other.layer1[0].bn1 = nn.Identity()
    with pytest.raises(UserError, match="other layers"):
        difference(built.module, other)


def test_a_pruned_file_loads_bit_by_bit_and_in_a_fresh_process(tmp_path):
    built = small(RESNET)
    module = pruned(built).eval()
    file = saved(built, module, Recipe((difference(built.module, module),)), tmp_path)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    again = build(ModelConfig(weights=str(file)), {}, None, 0)
    assert torch.equal(again.module.eval()(images), module(images))
    assert again.recipe == read_weights(file).recipe
    torch.save((images, module(images).detach()), tmp_path / "wanted.pt")
    done = fresh.run(
        code="import torch, sys\n"
        "from warmstart.config.schema import ModelConfig\n"
        "from warmstart.models.build import build\n"
        f"images, wanted = torch.load({str(tmp_path / 'wanted.pt')!r})\n"
        f"built = build(ModelConfig(weights={str(file)!r}), {{}}, None, 0)\n"
        "assert torch.equal(built.module.eval()(images), wanted)\n"
    )
    assert done.returncode == 0, done.stderr


def test_other_classes_and_grey_images_fit_a_compressed_file(tmp_path):
    """The recipe says nothing of the rows of the classifier or of the stem's channels."""
    built = small(RESNET)
    module = pruned(built)
    file = saved(built, module, Recipe((difference(built.module, module),)), tmp_path)
    other = build(ModelConfig(weights=str(file)), {}, ("b", "c", "d", "e"), 0)
    assert other.head_change.kept == ("b", "c")
    assert other.module(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    second = tmp_path / "second"
    second.mkdir()
    again = build(ModelConfig(weights=str(saved(other, other.module, other.recipe, second))), {}, None, 0)
    assert again.classes == other.classes


def test_edits_follow_each_other(tmp_path):
    built = small(RESNET)
    first = pruned(built)
    recipe = Recipe((difference(built.module, first),))
    edit = Edit(
        "factorise",
        {"layer1.0.conv2": {"rank": 5, "form": SEPARABLE}, "layer2.0.conv1": {"rank": 7, "form": LOW_RANK}},
    )
    module = copy.deepcopy(first)
    apply(module, Recipe((edit,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path in edit.layers:
            for parameter in module.get_submodule(path).parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    file = saved(built, module, recipe.then(edit), tmp_path)
    again = build(ModelConfig(weights=str(file)), {}, None, 0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    assert torch.equal(again.module.eval()(images), module.eval()(images))
    # The rows of a plan go on: both factors are of the block that the layer was of.
    names = {block.name: block.parameters for block in again.blocks}
    assert any("layer1.0.conv2.1.weight" in parameters for parameters in names.values())


@pytest.mark.parametrize("form", [LOW_RANK, SEPARABLE])
def test_factors_compute_the_product(form):
    """In float64, against the convolution with the weight that the two make."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=True).double()
    pair = factors(layer, 3, form)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(torch.randn_like(parameter))
    a, b = pair[0].weight, pair[1].weight
    product = "rdkl,er->edkl" if form == LOW_RANK else "rdk,erl->edkl"
    weight = torch.einsum(
        product, a if form == LOW_RANK else a[..., 0], b[..., 0, 0] if form == LOW_RANK else b[:, :, 0]
    )
    x = torch.randn(2, 4, 11, 13, dtype=torch.float64)
    wanted = functional.conv2d(x, weight, pair[1].bias, layer.stride, layer.padding, layer.dilation)
    assert torch.allclose(pair(x), wanted, atol=1e-12)


def test_sparse_layers_keep_their_zeros():
    layer = nn.Sequential(nn.Linear(6, 6))
    apply(layer, Recipe((Edit("sparse", {"0": True}),)))
    with torch.no_grad():
        layer[0].weight[:3] = 0
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    assert (layer[0].weight[:3] == 0).all()
    assert (layer[0].weight[3:] != 0).all()


def test_zeros_are_held_in_layers_that_get_smaller_afterwards():
    layer = nn.Sequential(nn.Linear(6, 6))
    smaller = Edit("resize", {"0": {"out_features": 4}}, {"0.weight": (4, None), "0.bias": (4,)})
    apply(layer, Recipe((Edit("sparse", {"0": True}), smaller)))
    with torch.no_grad():
        layer[0].weight[:2] = 0
    layer(torch.ones(2, 6)).square().sum().backward()
    assert (layer[0].weight.grad[:2] == 0).all()
    assert (layer[0].weight.grad[2:] != 0).all()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("code", {}), "no kind of edit"),
        (Edit("resize", {"nowhere": {"out_channels": 2}}), "no layer 'nowhere'"),
        (Edit("resize", {"conv1.0": {"forward": 2}}), "no size 'forward'"),
        (Edit("resize", {"conv1.0": {"out_channels": "2"}}), "no size 'out_channels'"),
        (Edit("resize", {}, {"fc.weight": (None, 9999)}), "cannot become"),
        (Edit("resize", {}, {"fc.weight": (2,)}), "no tensor 'fc.weight' of 1 sides"),
        (Edit("factorise", {"bn1": {"rank": 2, "form": LOW_RANK}}), "bn1 is a BatchNorm"),
        (Edit("factorise", {"fc": {"rank": 0, "form": LOW_RANK}}), "cannot become"),
        (Edit("sparse", {"act1": True}), "act1 has no weight"),
    ],
)
def test_a_damaged_recipe_is_refused(edit, message):
    module = create(RESNET, num_classes=3).module
    with pytest.raises(UserError, match=message):
        apply(module, Recipe((edit,)), "FILE")


def test_a_recipe_that_is_none_is_refused(tmp_path):
    built = small(RESNET)
    metadata = metadata_for(replace(built, recipe=Recipe(())))
    metadata = {
        key: text.replace('{\\"edits\\": []}', '{\\"edits\\": [3]}') for key, text in metadata.items()
    }
    file = tmp_path / "bad.safetensors"
    write_whole(file, TensorFile(built.module.state_dict(), metadata))
    with pytest.raises(UserError, match="has recipe ="):
        read_weights(file)


@pytest.mark.parametrize(
    "name",
    [RESNET, VIT, "timm:test_convnext", "torchvision:resnet18", "builtin:fashion_cnn", "smp:unet/resnet18"],
)
def test_an_outline_follows_the_recipe(name):
    known = outline(name)
    module = create(name, num_classes=2).module
    path = next(
        path
        for path, layer in module.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d)
        and path not in (known.head, known.first_conv)
        and getattr(layer, "groups", 1) == 1
    )
    put(module, path, factors(module.get_submodule(path), 2, LOW_RANK))
    edited = outline(name, Recipe((Edit("factorise", {path: {"rank": 2, "form": LOW_RANK}}),)))
    assert edited.shapes == {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert (edited.head, edited.first_conv) == (known.head, known.first_conv)
