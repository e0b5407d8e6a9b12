"""Modules that compute once more in the backward pass: same numbers, same buffers, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.inference.recompute import Recomputed, find_recomputed

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "drop-path": lambda: timm.create_model(
        "test_vit", img_size=32, num_classes=3, drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.2
    ),
    "mean of all batches": lambda: timm.create_model("resnet10t", num_classes=3, drop_path_rate=0.3),
    "a list that grows": lambda: torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=3),
    "stochastic depth": lambda: torchvision.models.efficientnet_b0(num_classes=3),
}


@pytest.fixture(autouse=True)
def _calm(one_thread: None) -> None:
    torch.manual_seed(0)


def trained(module: nn.Module, paths: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of two steps one after the other, and the buffers that are left."""
    part = Recomputed(module, [module.get_submodule(path) for path in paths]) if paths else module
    torch.manual_seed(1)
    module.train()
    for _ in range(2):
        part(torch.randn(4, 3, 32, 32)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    return gradients, [buffer.clone() for buffer in module.buffers()]


@pytest.mark.parametrize("name", MAKERS)
def test_the_second_pass_draws_the_same_numbers_and_moves_no_statistics(name: str) -> None:
    module = MAKERS[name]()
    if name == "mean of all batches":
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    subtrees = [
        path
        for path, _ in module.named_children()
        if next(module.get_submodule(path).parameters(), None) is not None
    ]
    paths = find_recomputed(module, subtrees, torch.randn(2, 3, 32, 32), module.train, name)
    assert len(paths) >= 2
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    plain = trained(module, ())
    module.load_state_dict(before)
    found = trained(module, paths)
    assert list(module.state_dict()) == list(before)
    for expected, got in zip(plain, found, strict=True):
        assert len(expected) == len(got) and all(map(torch.equal, expected, got))


class Counted(nn.Module):
    """Two layers, and how often they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.num_passes = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.num_passes += 1
        if scale < 0:
            raise ValueError("negative")
        return self.layers[1](self.layers[0](x).relu()) * scale


class Model(nn.Module):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.block, self.scale = Counted(), scale

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images.mean((2, 3)), scale=self.scale)


def test_only_where_there_is_a_backward_pass_to_come() -> None:
    model = Model()
    part, images = Recomputed(model, [model.block]), torch.randn(2, 4, 3, 3)
    for training, grad, num in ((True, True, 2), (True, False, 1), (False, True, 1)):
        model.block.num_passes = 0
        model.train(training)
        with torch.set_grad_enabled(grad):
            total = part(images).sum()
            if grad:
                total.backward()
        assert model.block.num_passes == num
        assert "forward" not in vars(model.block)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = Model(scale=-1.0)
    with pytest.raises(ValueError, match="negative"):
        Recomputed(model, [model.block])(torch.randn(2, 4, 3, 3))
    assert "forward" not in vars(model.block)


class Exponential(Counted):
    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return super().forward(x.exp(), scale=scale)


class InPlace(Model):
    """What its block was given is changed behind it; the block's first operation keeps its result only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.block = Exponential()

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.mean((2, 3)))
        y = self.block(x)
        x.add_(1)
        return y


def test_what_cannot_be_computed_twice_is_refused() -> None:
    model = InPlace()
    with pytest.raises(
        UserError, match="--gradient-checkpointing: object:A cannot compute its blocks a second time"
    ):
        find_recomputed(model, ["block"], torch.randn(2, 4, 3, 3), model.train, "object:A")


def test_what_gives_something_else_the_second_time_is_refused() -> None:
    class Moody(Counted):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return super().forward(x, scale=scale * (1 + self.num_passes % 2)) * x

    model = Model()
    model.block = Moody()
    with pytest.raises(UserError, match="gives other gradients"):
        find_recomputed(model, ["block"], torch.randn(2, 4, 3, 3), model.train, "object:B")


def test_lists_are_opened_and_single_layers_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(2, 3, 8, 8))
    with pytest.raises(UserError, match="no block of object:C that trains"):
        find_recomputed(model, ["0", "2"], torch.randn(2, 3, 8, 8), model.train, "object:C")

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Counted(), Counted()])
            self.registers = nn.Parameter(torch.zeros(0, 4))  # a DINOv3 may have none

        def forward(self, images: Tensor) -> Tensor:
            x = images.mean((2, 3)) + self.registers.sum()
            for block in self.blocks:
                x = block(x)
            return x

    listed = Listed()
    found = find_recomputed(listed, ["blocks"], torch.randn(2, 4, 3, 3), listed.train, "object:D")
    assert found == ("blocks.0", "blocks.1")


class Two(nn.Module):
    """Two inputs, and a block that computes by another function than its class's."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self.block.forward = lambda x: self.block[2](self.block[0](x))  # type: ignore[method-assign]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.block(x) + other


def test_a_forward_of_the_module_itself_stays_and_other_inputs_pass() -> None:
    module, x, other = Two().train(), torch.randn(2, 3), torch.randn(2, 3)
    expected = module(x, other)
    part = Recomputed(module, [module.block])
    for _ in range(2):
        assert torch.equal(part(x, other), expected)
    assert torch.equal(module(x, other), expected)
