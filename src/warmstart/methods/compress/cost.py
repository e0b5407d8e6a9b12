"""What a model costs: parameters, multiply-adds, bytes, and seconds measured beside the original.

Multiply-adds (MACs) and latency are different things: a layer with half of the channels need not take half of the
time, above all at batch 1, where much of it is overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCHES = (1, 32)
_SECONDS = 0.4  # of one call's measurement, about
_LEAST, _MOST = 5, 200  # rounds
_SHORTEST = 2e-3  # seconds of one reading of the clock


@dataclass(frozen=True)
class Latency:
    """Seconds of a batch: the median and the quartiles over rounds, in which what is compared takes turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """`num_nonzero` of the parameters are no zeros in a matrix; `num_bytes` are those of the file.

    `latency` by batch size is this model's, `original` that of the original in the same rounds.
    """

    num_parameters: int
    num_nonzero: int
    macs: int
    num_bytes: int
    latency: dict[int, Latency]
    original: dict[int, Latency]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cost:
        times = {
            name: {int(batch): Latency(**found) for batch, found in values[name].items()}
            for name in ("latency", "original")
        }
        return cls(**{**values, **times})


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(all, those of them that are no zeros in a matrix)"""
    parameters = list(module.parameters())
    num, zeros = sum(p.numel() for p in parameters), [(p == 0).sum() for p in parameters if p.ndim > 1]
    return num, num - int(sum(zeros))


def latencies(calls: Mapping[str, Callable[[], object]], wait: Callable[[], None]) -> dict[str, Latency]:
    """Seconds of each call; they take turns, so that a busy machine slows all alike. `wait` until a device is done."""
    repeats = {name: _repeats(call, wait) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + _SECONDS * len(calls)
    while len(next(iter(rounds.values()))) < _MOST:
        for name, call in calls.items():
            rounds[name].append(_timed(call, wait, repeats[name]))
        if time.perf_counter() > end and len(rounds[name]) >= _LEAST:
            break
    found = {name: np.quantile(times, [0.5, 0.25, 0.75]).tolist() for name, times in rounds.items()}
    return {name: Latency(*values) for name, values in found.items()}


def compare_latencies(
    model: nn.Module, original: nn.Module, images: Callable[[int], Tensor]
) -> tuple[dict[int, Latency], dict[int, Latency]]:
    """By batch size, of a model and of the original beside it, both in evaluation mode on one device."""
    own, others = {}, {}
    for batch in BATCHES:
        given = images(batch)
        wait = torch.cuda.synchronize if given.is_cuda else _nothing
        with torch.inference_mode():
            calls = {"model": lambda x=given: model(x), "original": lambda x=given: original(x)}
            found = latencies(calls, wait)
        own[batch], others[batch] = found["model"], found["original"]
    return own, others


def _nothing() -> None:
    """A CPU is done when it returns."""


def _repeats(call: Callable[[], object], wait: Callable[[], None]) -> int:
    """How many calls one reading of the clock is of; the first call pays for allocation."""
    _timed(call, wait, 1)
    return max(1, round(_SHORTEST / _timed(call, wait, 1)))


def _timed(call: Callable[[], object], wait: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats
