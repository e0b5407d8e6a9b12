from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import write_clip
from torch import nn

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.methods.compress.channels import Group, Side, remove, silence
from warmstart.methods.compress.prune import How, Target, prune
from warmstart.methods.compress.pruning import find_groups, pruned
from warmstart.models.build import build
from warmstart.models.recipe import apply, difference
from warmstart.models.zoo import create
from warmstart.records import Recipe

PX = 64
# Layers whose outputs can get fewer, and whether the classifier's inputs are among them.
MODELS = {
    "timm:test_resnet": (15, True),
    "timm:mobilenetv3_small_100": (42, True),  # depthwise convolutions, squeeze and excitation
    "timm:regnetx_002": (44, True),  # grouped convolutions
    "timm:convnext_atto": (28, True),  # layer scale
    "timm:test_vit": (12, False),
    "timm:swin_tiny_patch4_window7_224": (24, False),
    "timm:ghostnet_100": (None, None),  # slices of concatenations
    "builtin:fashion_cnn": (4, True),  # a linear layer behind `flatten`
    "builtin:microsegformer": (34, True),
    "smp:Unet/resnet18": (30, True),  # concatenations
}
SMALL = ("timm:test_resnet", "timm:test_vit", "smp:Unet/resnet18")


def made(name: str) -> tuple[nn.Module, str, torch.Tensor]:
    torch.manual_seed(0)
    # Some models have one image size.
    size = None if name in ("builtin:fashion_cnn", "timm:test_vit") else (PX, PX)
    created = create(name, 10, pretrained=False, image_size=size)
    for layer in created.module.modules():  # norms that do something
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    example = torch.randn(1, created.preprocessing.num_channels, *created.preprocessing.image_size)
    return created.module.eval(), created.head, example


def thirds(groups: tuple[Group, ...]) -> list[frozenset[int]]:
    """The units 1, 4, 7..: not the first ones, and not the half that is tried when groups are found."""
    return [frozenset(range(1, group.num_units, 3)) for group in groups]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_channels_computes_what_it_computes_with_readers_of_zeros(name: str) -> None:
    module, head, example = made(name)
    groups = find_groups(module, example, head, name)
    num_layers, feeds_head = MODELS[name]
    layers = {path for group in groups for path in group.made_by}
    assert head not in layers
    if num_layers is not None:
        assert len(layers) == num_layers
        assert any(group.feeds(head) for group in groups) is feeds_head
    # Layer norms count over channels: those groups are only tried.
    plain = tuple(group for group in groups if not any(_counts(module, m.path) for m in group.members))
    smaller = pruned(module, plain, thirds(plain), example, name)
    silent = copy.deepcopy(module)
    silence(silent, plain, thirds(plain))
    with torch.no_grad():
        torch.testing.assert_close(smaller(example), silent(example), rtol=1e-3, atol=1e-4)
        assert pruned(module, groups, thirds(groups), example, name)(example).isfinite().all()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (module, smaller)]
    assert not plain or sizes[1] < 0.95 * sizes[0]


def _counts(module: nn.Module, path: str) -> bool:
    return isinstance(dict(module.named_modules()).get(path), (nn.LayerNorm, nn.GroupNorm))


@pytest.mark.parametrize("name", SMALL)
def test_a_pruned_model_is_its_recipe_and_its_weights(name: str) -> None:
    module, head, example = made(name)
    groups = find_groups(module, example, head, name)
    smaller = pruned(module, groups, thirds(groups), example, name)
    fresh = made(name)[0]
    apply(fresh, Recipe((difference(module, smaller),)))
    fresh.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(example), smaller(example))
    (fresh(example) ** 2).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in fresh.parameters() if p.requires_grad)


def test_heads_go_with_their_queries_keys_values_and_biases() -> None:
    module, head, example = made("timm:swin_tiny_patch4_window7_224")
    groups = find_groups(module, example, head, "swin")
    path = "layers.1.blocks.1.attn"
    (group,) = [group for group in groups if f"{path}.qkv" in group.made_by]
    assert group.num_units == 6 and {m.side for m in group.members} == {
        Side.OUT,
        Side.IN,
        Side.PARAMETER,
        Side.HEADS,
    }
    smaller = copy.deepcopy(module)
    remove(smaller, [group], [frozenset({0, 3})])
    attention: Any = smaller.get_submodule(path)
    old: Any = module.get_submodule(path)
    assert attention.num_heads == 4 and attention.relative_position_bias_table.shape[1] == 4
    kept = torch.cat([torch.arange(32, 96), torch.arange(128, 192)])
    assert torch.equal(attention.proj.weight, old.proj.weight[:, kept])
    assert torch.equal(attention.qkv.bias, old.qkv.bias[torch.cat([kept + part * 192 for part in range(3)])])


def test_grouped_convolutions_lose_the_same_of_each_group() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.GroupNorm(3, 12), nn.Conv2d(12, 5, 1)
    )
    net = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    example = torch.randn(1, 3, 8, 8)
    groups = find_groups(net, example, "3", "net")
    assert {group.name: group.num_units for group in groups} == {"0.0": 4, "0.1": 4, "0.3": 5}
    smaller = pruned(net, groups, [frozenset({1}), frozenset({0, 2}), frozenset()], example, "net")
    conv, norm = smaller.get_submodule("0.1"), smaller.get_submodule("0.2")
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
    assert (conv.in_channels, conv.out_channels, conv.groups, norm.num_channels) == (9, 6, 3, 6)
    old = net.get_submodule("0.1")
    assert isinstance(old, nn.Conv2d)
    assert torch.equal(conv.weight, old.weight[[1, 3, 5, 7, 9, 11]][:, [0, 2, 3]])


def test_what_is_not_understood_is_refused_by_name() -> None:
    class Odd(nn.Module):
        """A forward that has its sizes by heart."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.first(x).mean(dim=(2, 3)).view(-1, 8))

    with pytest.raises(UserError, match="odd has no channels that can be taken out"):
        find_groups(Odd(), torch.randn(1, 3, 4, 4), "head", "odd")
    with pytest.raises(UserError, match=r"Torch-Pruning cannot follow torchvision:shufflenet_v2_x0_5"):
        module, head, example = made("torchvision:shufflenet_v2_x0_5")
        find_groups(module, example, head, "torchvision:shufflenet_v2_x0_5")


def test_layers_that_are_to_stay_keep_their_outputs() -> None:
    module, head, example = made("timm:test_resnet")
    target = Target(module, head, example, "test_resnet", lambda path: "conv2" not in path)
    smaller = prune(target, 0.1, How())
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and "conv2" in path:
            assert smaller.module.get_submodule(path).out_channels == layer.out_channels
    assert smaller.saved == pytest.approx(0.1, abs=0.03)
    with pytest.raises(UserError, match="every channel that could go is made by a layer that is to stay"):
        prune(Target(module, head, example, "test_resnet", lambda path: False), 0.1, How())
    with pytest.raises(
        UserError, match=r"0.99 of the MACs cannot be removed at once: the channels that may go"
    ):
        prune(Target(module, head, example, "test_resnet"), 0.99, How())


@pytest.mark.parametrize("scope", ["global", "block"])
@pytest.mark.parametrize("name", SMALL)
def test_so_many_macs_are_saved(name: str, scope: str) -> None:
    module, head, example = made(name)
    smaller = prune(Target(module, head, example, name), 0.4, How("l1", scope))
    assert smaller.saved == pytest.approx(0.4, abs=0.06)
    if scope == "block":
        shares = [gone / units for gone, units in smaller.gone.values() if units > 16]
        assert max(shares) - min(shares) < 0.1


def test_features_of_an_embedding_are_selected() -> None:
    module, head, example = made("timm:test_resnet")
    smaller = prune(Target(module, head, example, "test_resnet"), 0.25, How("l2", "embedding"))
    before, after = module.get_submodule(head), smaller.module.get_submodule(head)
    assert isinstance(before, nn.Linear) and isinstance(after, nn.Linear)
    assert after.in_features == round(0.75 * before.in_features)
    assert after.out_features == before.out_features
    vit, head, example = made("timm:test_vit")
    with pytest.raises(UserError, match="they are the stream that all its blocks add to"):
        prune(Target(vit, head, example, "test_vit"), 0.25, How("l2", "embedding"))


def test_the_image_tower_of_a_clip_loses_heads_and_hidden_units(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", steps=0)
    built = build(ModelConfig(name=f"hf:{folder}"), {}, ("a", "b", "c"), 0)
    module, size = built.module.eval(), built.preprocessing.image_size
    example = torch.randn(1, 3, *size)
    groups = find_groups(module, example, built.head, "clip")
    made_by = [path for group in groups for path in group.made_by]
    assert (
        sum(path.endswith("fc1") for path in made_by) == sum(path.endswith("q_proj") for path in made_by) > 1
    )
    smaller = pruned(module, groups, thirds(groups), example, "clip")
    silent = copy.deepcopy(module)
    silence(silent, groups, thirds(groups))
    with torch.no_grad():
        torch.testing.assert_close(smaller(example), silent(example), rtol=1e-4, atol=1e-5)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # as if it were not there
    module, head, example = made("builtin:fashion_cnn")
    with pytest.raises(UserError, match=r"needs Torch-Pruning, which is not installed"):
        find_groups(module, example, head, "fashion_cnn")
