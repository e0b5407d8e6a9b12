"""What training changed, block by block: CKA between the representations of two models, and how far weights moved.

Shapes: N images, D features of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from warmstart.analysis.explain.layers import block_modules, is_text, layouts, watched
from warmstart.models.build import BuiltModel

_MOST_PLACES = 4  # on a side: what a map is averaged to
_FEWEST = 4  # images that the debiased estimate is defined for

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """`cka` (blocks of the start, blocks of the tuned model); `debiased` and `moved` are of equal blocks, by name."""

    blocks: tuple[str, ...]
    other_blocks: tuple[str, ...]
    num_samples: int
    cka: Matrix
    debiased: dict[str, float]
    moved: dict[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """One per block that both have: how alike it is, and |w - w_start| / |w_start| of its weights."""
        return [
            {
                "block": name,
                "cka": float(self.cka[self.blocks.index(name), self.other_blocks.index(name)]),
                "cka_debiased": value,
                "weights_moved": self.moved.get(name),
            }
            for name, value in self.debiased.items()
        ]


def gram(features: NDArray[Any]) -> Matrix:
    """(N, N) of (N, D): X X^T of columns whose mean is 0."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return centred @ centred.T


def linear_cka(first: Matrix, second: Matrix) -> float:
    """Of two `gram` matrices: |Y^T X|^2 / (|X^T X| |Y^T Y|) in Frobenius norms (Kornblith et al. 2019, section 3).

    1 for features that are equal up to a rotation and a factor. With far fewer images than features it is near 1 for
    anything. NaN where one of them is the same for all images.
    """
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float((first * second).sum() / norms) if norms > 0 else float("nan")


def debiased_cka(first: Matrix, second: Matrix) -> float:
    """The same with the unbiased estimate of HSIC (Song et al. 2012, equation 5; Nguyen et al. 2021): about 0 for
    features that have nothing to do with each other, however many there are. NaN below four images.
    """
    if len(first) < _FEWEST:
        return float("nan")
    own, cross, others = _hsic(first, first), _hsic(first, second), _hsic(second, second)
    return cross / float(np.sqrt(own * others)) if own * others > 0 else float("nan")


def _hsic(first: Matrix, second: Matrix) -> float:
    num = len(first)
    a, b = (np.where(np.eye(num, dtype=bool), 0.0, matrix) for matrix in (first, second))
    whole = a.sum() * b.sum() / ((num - 1) * (num - 2))
    total = (a * b).sum() + whole - 2 / (num - 2) * (a.sum(axis=0) @ b.sum(axis=0))
    return float(total / (num * (num - 3)))


class BlockFeatures:
    """(N, D) of every block but the head, gathered batch by batch on the CPU: maps averaged to at most 4 x 4 places."""

    def __init__(self, built: BuiltModel) -> None:
        self._built = built
        self._paths = {
            block.name: block_modules(built.module, block)
            for block in built.blocks[:-1]
            if not is_text(block)
        }
        self._parts: dict[str, list[torch.Tensor]] = {}

    def add(self, inputs: torch.Tensor) -> None:
        """One forward pass of images (N, C, H, W)."""
        module = self._built.module
        convolutions = [path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)]
        paths = dict.fromkeys([*(path for each in self._paths.values() for path in each), *convolutions])
        with torch.no_grad(), watched(module, paths) as outputs:
            module(inputs)
        found = layouts(module, inputs, outputs)
        for name, own in self._paths.items():
            given = [path for path in outputs if path in own and len(outputs[path]) == len(inputs)]
            if given:  # in the order of computing: the last is what the block hands on
                tensor, layout = outputs[given[-1]], found.get(given[-1])
                features = tensor if layout is None else _coarse(layout.to_map(tensor))
                self._parts.setdefault(name, []).append(features.flatten(1).float().cpu())

    def grams(self) -> dict[str, Matrix]:
        return {name: gram(torch.cat(parts).numpy()) for name, parts in self._parts.items()}


def _coarse(maps: torch.Tensor) -> torch.Tensor:
    height, width = (min(side, _MOST_PLACES) for side in maps.shape[2:])
    return F.adaptive_avg_pool2d(maps, (height, width))


def compare(start: BlockFeatures, tuned: BlockFeatures, models: tuple[BuiltModel, BuiltModel]) -> Similarity:
    """CKA of every block of the start with every block of the tuned model, on the same images."""
    before, after = start.grams(), tuned.grams()
    shared = [name for name in after if name in before]
    return Similarity(
        tuple(before),
        tuple(after),
        len(next(iter(after.values()))),
        np.array([[linear_cka(a, b) for b in after.values()] for a in before.values()]),
        {name: debiased_cka(before[name], after[name]) for name in shared},
        _moved(*models),
    )


def _moved(start: BuiltModel, tuned: BuiltModel) -> dict[str, float]:
    """By block: |w - w_start| / |w_start|, of all weights together; without blocks whose weights have other shapes."""
    before, after = dict(start.module.named_parameters()), dict(tuned.module.named_parameters())
    found = {}
    for block in tuned.blocks:
        names = block.parameters
        if all(name in before and before[name].shape == after[name].shape for name in names):
            pairs = [(before[name].detach().double(), after[name].detach().double()) for name in names]
            length = sum(float(old.square().sum()) for old, _ in pairs)
            change = sum(float((new - old).square().sum()) for old, new in pairs)
            found[block.name] = (change / length) ** 0.5 if length else float("nan")
    return found
