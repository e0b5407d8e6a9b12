"""Optimizer state by parameter name: through files, memory layouts and regrouping."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from warmstart.adapt.apply import Group
from warmstart.config.schema import OptimConfig
from warmstart.engine.optimizer import (
    check_optimizer,
    check_zeros,
    make_optimizer,
    restore_by_name,
    set_rates,
    state_by_name,
)
from warmstart.errors import UserError

CPU = torch.device("cpu")
NAMES = (
    "adamw",
    "sgd",
    "lamb",
    "lion",
    "adafactor",
    "adafactorbv",
    "nadamw",
    "madgrad",
    "adan",
    "nadamlegacy",
)
NAMES += ("rmsproptf", "laprop", "mars", "muon", "adopt", "lars")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 3)]
    return nn.Sequential(*layers)


def groups(module: nn.Module, blocks: tuple[str, ...] = ("0", "2", "4")) -> tuple[Group, ...]:
    parameters = dict(module.named_parameters())
    made = []
    for block in blocks:
        for part, decay in (("weight", 0.1), ("bias", 0.0)):
            name = f"{block}.{part}"
            made.append(Group(block, 0.01, decay, (name,), (parameters[name],)))
    return tuple(made)


def steps(
    module: nn.Module, optimizer: torch.optim.Optimizer, first: int, num: int, channels_last: bool = False
) -> None:
    for step in range(first, first + num):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def through_files(
    tensors: dict[str, Tensor], values: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As a checkpoint keeps them: contiguous tensors and JSON."""
    return load(save({k: v.contiguous() for k, v in tensors.items()})), json.loads(json.dumps(values))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, left), right in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_restored_optimizer_takes_the_same_steps_to_the_bit(name: str, channels_last: bool) -> None:
    """Restored from contiguous files beside channels_last weights: the trap of fused AdamW."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = model().to(memory_format=layout)
    optim = OptimConfig(optimizer=name)
    optimizer = make_optimizer(optim, groups(module), CPU)
    steps(module, optimizer, 0, 3, channels_last)
    twin = copy.deepcopy(module)
    resumed = make_optimizer(optim, groups(twin), CPU)
    restore_by_name(resumed, *through_files(*state_by_name(optimizer)))
    steps(module, optimizer, 3, 3, channels_last)
    steps(twin, resumed, 3, 3, channels_last)
    assert_same(module, twin)


def test_torchs_own_restoring_falls_into_the_trap() -> None:
    """Shows that the test above can fail: with the file's layout the next steps differ."""
    module = model().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(OptimConfig(), groups(module), CPU)
    steps(module, optimizer, 0, 3, True)
    twin = copy.deepcopy(module)
    wrong = make_optimizer(OptimConfig(), groups(twin), CPU)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({key: value.contiguous() for key, value in state.items()})
    wrong.load_state_dict(saved)
    steps(module, optimizer, 3, 1, True)
    steps(twin, wrong, 3, 1, True)
    assert not torch.equal(module[0].weight, twin[0].weight)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adan", "madgrad"])
def test_unfreezing_carries_what_is_known_and_starts_the_rest_fresh(name: str) -> None:
    """The last layer must go on as if the optimizer had never been made again."""
    optim = OptimConfig(optimizer=name, momentum=0.9)
    staged = model()
    only = make_optimizer(optim, groups(staged, ("4",)), CPU)
    steps(staged, only, 0, 3)
    twin = copy.deepcopy(staged)
    wider = make_optimizer(optim, groups(staged), CPU)
    restore_by_name(wider, *state_by_name(only))
    same = make_optimizer(optim, groups(twin, ("4",)), CPU)
    restore_by_name(same, *state_by_name(only))
    fresh = staged[0].weight
    assert not wider.state.get(fresh)
    steps(staged, wider, 3, 1)
    steps(twin, same, 3, 1)
    assert torch.equal(staged[4].weight, twin[4].weight) and torch.equal(staged[4].bias, twin[4].bias)
    assert not torch.equal(staged[0].weight, twin[0].weight)


def test_restored_state_is_a_copy() -> None:
    module = model()
    optimizer = make_optimizer(OptimConfig(), groups(module), CPU)
    steps(module, optimizer, 0, 1)
    twin = copy.deepcopy(module)
    other = make_optimizer(OptimConfig(), groups(twin), CPU)
    restore_by_name(other, *state_by_name(optimizer))
    before = optimizer.state[module[0].weight]["exp_avg"].clone()
    steps(twin, other, 1, 2)
    assert torch.equal(optimizer.state[module[0].weight]["exp_avg"], before)


def test_the_kernel_in_use_is_not_state() -> None:
    """A run saved where AdamW is fused may be resumed where it is not."""
    module = model()
    _, values = state_by_name(make_optimizer(OptimConfig(), groups(module), CPU))
    assert set(values["groups"]) == {f"{n}.{part}" for n in (0, 2, 4) for part in ("weight", "bias")}
    kept = set(values["groups"]["0.weight"])
    assert "betas" in kept and not kept & {"fused", "foreach", "capturable", "lr", "weight_decay"}


def test_rates_keep_their_ratio() -> None:
    module = model()
    parameters = dict(module.named_parameters())
    planned = [
        Group(n, lr, 0.0, (f"{n}.weight",), (parameters[f"{n}.weight"],))
        for n, lr in (("0", 1e-4), ("4", 1e-2))
    ]
    optimizer = make_optimizer(OptimConfig(lr=5.0), planned, CPU)
    assert set_rates(optimizer, 0.5) == [0.5e-4, 0.5e-2]
    assert set_rates(optimizer, 1.0) == [1e-4, 1e-2]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-2]


def test_the_settings_reach_the_optimizer() -> None:
    module = model()
    optimizer = make_optimizer(OptimConfig(optimizer="sgd", momentum=0.7), groups(module), CPU)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7] * 6
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0] * 3


def test_state_that_no_file_can_hold_is_refused() -> None:
    module = model()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=2)
    optimizer.param_groups[0]["names"] = tuple(name for name, _ in module.named_parameters())
    images = torch.randn(2, 3, 8, 8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module(images).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(
        UserError, match="the optimizer keeps 'old_dirs' as list, which a checkpoint cannot hold"
    ):
        state_by_name(optimizer)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "adamv",
            "--optimizer 'adamv' is unknown\n"
            "Expected: adamw, sgd, or a name of timm's optimizer factory\nFix: Did you mean 'adam",
        ),
        ("adahessian", "--optimizer adahessian needs second-order gradients, which this loop does not keep"),
        ("fusedsgd", "--optimizer fusedsgd cannot be used here: "),
    ],
)
def test_what_cannot_train_here_is_refused_before_training(name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_optimizer(OptimConfig(optimizer=name), CPU)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_saved_is_accepted(name: str) -> None:
    check_optimizer(OptimConfig(optimizer=name), CPU)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_without_a_gradient_stay_zero_or_the_optimizer_is_refused(name: str) -> None:
    """Of a sparse model; muon moves a weight by the gradients of others."""
    if name == "muon":
        with pytest.raises(UserError, match="--optimizer muon moves weights"):
            check_zeros(OptimConfig(optimizer=name), CPU)
    else:
        check_zeros(OptimConfig(optimizer=name), CPU)
