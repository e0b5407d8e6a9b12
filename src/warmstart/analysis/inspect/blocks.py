"""The tensors of a file by block, by their names alone; and two files side by side. No model is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class BlockRow:
    """`num_parameters` are numbers of floating point tensors but running statistics; `rms`: their root mean square."""

    name: str
    num_tensors: int
    num_parameters: int
    rms: float | None
    zeros: float | None  # share of the parameters that are exactly 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BlockChange:
    """How one block differs: `relative` is |b - a| / |a|, `cosine` that of the two as vectors; None without numbers.

    `num_equal` of its `num_tensors` common tensors are the same to the bit.
    """

    name: str
    num_tensors: int
    num_equal: int
    relative: float | None
    cosine: float | None
    largest: float | None  # |b - a| of one number

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def block_of(name: str) -> str:
    """`blocks.3.attn.qkv.weight` -> `blocks.3`; `conv1.weight` -> `conv1`: up to a number, else the first part."""
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else name.partition(".")[0]


def is_statistic(name: str) -> bool:
    """A running statistic of a norm, or its counter."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def by_block(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Block -> its tensors, in the order of the file."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        found.setdefault(block_of(name), {})[name] = tensor
    return found


def block_rows(state: Mapping[str, Tensor]) -> list[BlockRow]:
    rows = []
    for block, tensors in by_block(state).items():
        numbers = _parameters(tensors)
        count = sum(tensor.numel() for tensor in numbers.values())
        squares = sum(float(tensor.double().square().sum()) for tensor in numbers.values())
        zeros = sum(int((tensor == 0).sum()) for tensor in numbers.values())
        rows.append(
            BlockRow(
                block,
                len(tensors),
                count,
                math.sqrt(squares / count) if count else None,
                zeros / count if count else None,
            )
        )
    return rows


def block_changes(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[BlockChange]:
    """Of the tensors that both have in one shape, in the order of the second file."""
    common = {name for name in second if name in first and first[name].shape == second[name].shape}
    rows = []
    for block, tensors in by_block({name: second[name] for name in second if name in common}).items():
        equal = sum(torch.equal(first[name], tensor) for name, tensor in tensors.items())
        numbers = {name: tensor.double() for name, tensor in _parameters(tensors).items()}
        dot = before = after = change = largest = 0.0
        for name, tensor in numbers.items():
            old = first[name].double()
            dot += float((old * tensor).sum())
            before += float(old.square().sum())
            after += float(tensor.square().sum())
            change += float((tensor - old).square().sum())
            largest = max(largest, float((tensor - old).abs().max())) if tensor.numel() else largest
        rows.append(
            BlockChange(
                block,
                len(tensors),
                equal,
                math.sqrt(change / before) if before else None,
                dot / math.sqrt(before * after) if before and after else None,
                largest if numbers else None,
            )
        )
    return rows


@dataclass(frozen=True)
class Shapes:
    """Tensors of two files that cannot be set side by side, by name; `reshaped` has both shapes."""

    missing: tuple[str, ...]  # only in the first
    new: tuple[str, ...]  # only in the second
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def of(cls, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Shapes:
        return cls(
            tuple(name for name in first if name not in second),
            tuple(name for name in second if name not in first),
            tuple(
                (name, tuple(first[name].shape), tuple(second[name].shape))
                for name in second
                if name in first and first[name].shape != second[name].shape
            ),
        )


def relative_change(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    """|b - a| / |a| over all parameters that both have; None without any."""
    names = [
        name for name in _parameters(second) if name in first and first[name].shape == second[name].shape
    ]
    before = sum(float(first[name].double().square().sum()) for name in names)
    change = sum(float((second[name].double() - first[name].double()).square().sum()) for name in names)
    return math.sqrt(change / before) if before else None


def _parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not is_statistic(name)
    }
