"""What looks wrong in the tensors of a file: numbers, dead channels, BatchNorm statistics, a stale average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from warmstart.analysis.inspect.blocks import is_statistic, relative_change
from warmstart.errors import listing

_DEAD = 1e-8  # of the largest weight of the tensor: a channel below it says nothing
_SMALLEST_VARIANCE, _LARGEST_VARIANCE = 1e-10, 1e6
_STALE = 0.1  # relative distance of an average from what it is an average of
_NUM_NAMED = 3


def warnings_of(state: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None = None) -> list[str]:
    """Sentences about what looks wrong; empty where nothing does. `averaged` is the EMA twin of `state`."""
    return [
        *_not_finite(state),
        *_dead_channels(state),
        *_statistics(state),
        *_average(state, averaged or {}),
    ]


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.itemsize > 1:
            num = int((~tensor.isfinite()).sum())
            found += [f"{name} ({num} of {tensor.numel()})"] if num else []
    return [f"NaN or infinite numbers in {len(found)} tensors: {listing(found, _NUM_NAMED)}"] if found else []


def _dead_channels(state: Mapping[str, Tensor]) -> list[str]:
    """Output channels of convolutions and linear layers whose weights are all 0, and norms that scale by 0."""
    layers, norms = [], []
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not name.endswith("weight") or not tensor.numel():
            continue
        largest = tensor.abs().max()
        if tensor.ndim >= 2:
            dead = int((tensor.abs().flatten(1).amax(dim=1) <= _DEAD * largest).sum())
            layers += [f"{name} ({dead} of {len(tensor)})"] if dead else []
        elif tensor.ndim == 1:
            dead = int((tensor.abs() <= _DEAD).sum())
            norms += [f"{name} ({dead} of {len(tensor)})"] if dead else []
    told = []
    if layers:
        told.append(
            f"output channels whose weights are all 0, in {len(layers)} layers: {listing(layers, _NUM_NAMED)}"
        )
    if norms:
        told.append(
            f"channels that a norm multiplies by 0, in {len(norms)} norms: {listing(norms, _NUM_NAMED)}"
        )
    return told


def _statistics(state: Mapping[str, Tensor]) -> list[str]:
    """BatchNorm statistics that no training gives."""
    small: list[str] = []
    large: list[str] = []
    negative: list[str] = []
    unused: list[str] = []
    for name, variance in state.items():
        if not name.endswith("running_var") or not variance.numel():
            continue
        layer = name.removesuffix(".running_var")
        mean, counter = (state.get(f"{layer}.{part}") for part in ("running_mean", "num_batches_tracked"))
        is_start = bool((variance == 1).all()) and (mean is None or bool((mean == 0).all()))
        if is_start or (counter is not None and int(counter) == 0):
            unused.append(layer)
            continue
        for found, where in (
            (small, (variance >= 0) & (variance < _SMALLEST_VARIANCE)),
            (large, variance > _LARGEST_VARIANCE),
            (negative, variance < 0),
        ):
            num = int(where.sum())
            found += [f"{layer} ({num} of {variance.numel()})"] if num else []
    sentences = {
        "never updated: mean 0 and variance 1, or no batch counted": unused,
        "a variance of about 0: channels that never change, and that a norm blows up": small,
        f"a variance above {_LARGEST_VARIANCE:.0e}: a training that diverged, or pixels not normalised": large,
        "a negative variance: the file is damaged": negative,
    }
    return [
        f"BatchNorm statistics with {what}: {len(layers)} norms: {listing(layers, _NUM_NAMED)}"
        for what, layers in sentences.items()
        if layers
    ]


def _average(state: Mapping[str, Tensor], averaged: Mapping[str, Tensor]) -> list[str]:
    distance = relative_change(state, averaged)
    if distance is None:
        return []
    names = [name for name in averaged if name in state and not is_statistic(name)]
    if all(torch.equal(averaged[name], state[name]) for name in names):
        return ["the averaged weights (EMA) equal the raw ones to the bit: nothing was averaged"]
    if distance > _STALE:
        return [
            f"the averaged weights (EMA) are stale: {distance:.0%} away from the raw ones (relative), as a decay gives "
            "that is too slow for the number of steps"
        ]
    return []
