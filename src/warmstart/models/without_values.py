"""Models of which only names and shapes are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.copy_, Tensor.clamp_})


class _Unfilled(TorchFunctionMode):
    """A tensor on the meta device has no values; to draw them nonetheless is most of what making a model takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLS and args[0].device.type == "meta":
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_values(device: str = "meta") -> Iterator[None]:
    """What is made within costs no memory, and draws no random number of anybody else's."""
    with torch.random.fork_rng(devices=[]), torch.device(device), _Unfilled():
        yield
