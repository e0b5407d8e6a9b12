"""Small models with quantised layers, as `compress --method qat` makes them."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from warmstart.config.schema import ModelConfig
from warmstart.methods.compress.ranges import find_grids, find_places
from warmstart.models.build import BuiltModel, build
from warmstart.models.quantised import SAFE_LEVELS
from warmstart.models.recipe import QUANTISED, apply
from warmstart.records import Edit, Recipe


def images(num: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn((num, 3, size, size), generator=torch.Generator().manual_seed(seed))


def put_on_grids(module: nn.Module, given: Tensor, keep: tuple[str, ...] = ()) -> Recipe:
    """As qat does it, in place."""
    places = find_places(module, given[:2], keep)
    grids = find_grids(module, places, [given])
    layers = {path: {"output": point, "levels": SAFE_LEVELS} for path, point in places.layers.items()}
    recipe = Recipe((Edit(QUANTISED, layers),))
    apply(module, recipe)
    module.load_state_dict({**module.state_dict(), **grids})
    return recipe


class Plain(nn.Module):
    """Convolutions with norms of all kinds and without, a shortcut that is added in place, and rows of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.other = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6, affine=False)
        self.third, self.active = nn.Conv2d(6, 6, 1, stride=2), BatchNormAct2d(6, act_layer=nn.SiLU)
        self.relu, self.tokens, self.last = nn.ReLU(inplace=True), nn.Linear(6, 8), nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.other(self.second(x))
        y += x
        y = self.active(self.third(self.relu(y)))
        found: Tensor = self.last(self.tokens(y.flatten(2).transpose(1, 2)).mean(1))
        return found


def plain() -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Plain()
        for norm in (module.norm, module.other, module.active):
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(module.norm.weight)
    return module.eval()


def made(name: str, size: int) -> tuple[BuiltModel, Tensor]:
    built = build(
        ModelConfig(name=name, weights="none"), {"image_size": (size, size)}, ("a", "b", "c"), seed=0
    )
    given = images(4, size)
    recipe = put_on_grids(built.module, given, (built.head,))
    return replace(built, recipe=recipe), given


def built_of(module: nn.Module, recipe: Recipe | None, size: int) -> BuiltModel:
    """A module as a model of three classes on images of `size` pixels."""
    settings = ModelConfig(name="timm:resnet10t", weights="none")
    built = build(settings, {"image_size": (size, size)}, ("a", "b", "c"), seed=0)
    return replace(built, module=module, recipe=recipe)
