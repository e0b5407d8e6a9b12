from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.errors import UserError
from warmstart.methods.compress.channels import Group, silence
from warmstart.methods.compress.importance import importance
from warmstart.methods.compress.pruning import find_groups

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


class Net(nn.Module):
    """Two convolutions, a residual one and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
        self.outer = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net().double().eval()
    for norm in (made.norm, made.inner_norm):
        nn.init.uniform_(norm.weight, 0.2, 2)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return made


@pytest.fixture
def groups(net: Net) -> tuple[Group, ...]:
    found = find_groups(net, EXAMPLE, "head", "net")
    assert [group.name for group in found] == ["first", "inner"]
    return found


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_equal_those_of_torch_pruning(
    kind: str, power: int, net: Net, groups: tuple[Group, ...]
) -> None:
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(net, EXAMPLE, forward_fn=lambda m, x: m(x))
    reference = tp.importance.GroupMagnitudeImportance(p=power)
    for group, score in zip(groups, importance(net, groups, kind, 0), strict=True):
        layer = net.get_submodule(group.name)
        theirs = reference(
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
        )
        torch.testing.assert_close(score, theirs.double(), rtol=1e-6, atol=0)  # they add up in float32


def test_scales_of_norms_and_chance(net: Net, groups: tuple[Group, ...]) -> None:
    _, inner = importance(net, groups, "bn", 0)
    expected = net.inner_norm.weight.detach()
    torch.testing.assert_close(inner, expected / expected.mean())
    first, again, other = (importance(net, groups, "random", seed)[0] for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2)).double()
    with pytest.raises(UserError, match="no channels that can go have a batch norm"):
        importance(bare, find_groups(bare, EXAMPLE, "2", "bare"), "bn", 0)


def test_taylor_is_the_change_of_the_loss_to_first_order(net: Net, groups: tuple[Group, ...]) -> None:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    targets = torch.arange(8) % 3

    def loss(module: nn.Module) -> Tensor:
        return functional.cross_entropy(module(images), targets)

    scores = importance(net, groups, "taylor", 0, [loss])
    before = loss(net).item()
    for number, group in enumerate(groups):
        found = scores[number]
        assert found is not None
        for unit in range(group.num_units):
            # A small step of the readers' weights towards zero, in place of all the way.
            moved, target = Net().double().eval(), Net().double().eval()
            moved.load_state_dict(net.state_dict())
            target.load_state_dict(net.state_dict())
            silence(target, [group], [frozenset({unit})])
            step = 1e-5
            with torch.no_grad():
                for own, far in zip(moved.parameters(), target.parameters(), strict=True):
                    own += step * (far - own)
            slope = (loss(moved).item() - before) / step
            assert found[unit].item() == pytest.approx(slope**2, rel=1e-3, abs=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())
    with pytest.raises(UserError, match="there is no training image"):
        importance(net, groups, "taylor", 0)
