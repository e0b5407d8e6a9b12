"""Every adapter of a run gets a gradient, or the run is refused before anything is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from warmstart.adapt.apply import set_modes
from warmstart.engine.feature_plan import as_inputs, some_batch
from warmstart.engine.gradients import zero_scale
from warmstart.engine.job import Job
from warmstart.errors import UserError, listing
from warmstart.inference.gradients import gradients_of
from warmstart.models.adapters.inject import adapted_layer

_NUM_LOOKS = 10  # as many steps as a run takes to say that something learns nothing
_NUM_IMAGES = 2  # norm layers learn nothing from one
_SPREAD = 1e-2  # of the numbers in B: the model computes about what it computes at the start


def check_adapters(job: Job) -> tuple[str, ...]:
    """What the plan should say of adapters that get no gradient, as what they give is multiplied by zero.

    Looked at in the modes of the last stage, where all of them train. Drop-path or a layer that is zero for a few
    images may silence an adapter by chance: it is looked at again, with other images and other random numbers. That
    a scale of zero is the reason is proved: with numbers in all that are zero, the adapter has a gradient.

    Raises:
        UserError: an adapter has no gradient, and no scale of zero explains it.
    """
    if job.built.lora is None:  # a model's own layers may be called like adapters
        return ()
    module, adapters = job.built.module, _adapters(job)
    with _modes_kept(module), _filled(_second_factors(module), _SPREAD):
        silent = _silent(job, adapters, (0,))
        zeros = _zeros(module) if silent else {}
        with _filled(list(zeros.values()), 1.0):
            dead = _silent(job, {path: adapters[path] for path in silent}, range(_NUM_LOOKS))
        scaled = {path: adapters[path] for path in silent if path not in dead}
        by_scale: dict[str, list[str]] = {}
        for path in _silent(job, scaled, range(1, _NUM_LOOKS)):
            by_scale.setdefault(zero_scale(module, path) or listing(zeros, 3), []).append(path)
    if dead:
        raise UserError(
            f"{len(dead)} adapters would learn nothing, as no gradient comes back to them: {listing(dead, 8)}",
            "adapters of layers that the outputs depend on, through operations with a gradient",
            f"--lora.targets without {listing(dead, 8)}",
        )
    return tuple(
        f"{len(paths)} adapters have no gradient as long as {scale} is zero, which multiplies what they give: "
        f"{listing(paths, 4)}"
        for scale, paths in by_scale.items()
    )


def _adapters(job: Job) -> dict[str, list[nn.Parameter]]:
    """Their parameters that train, by the path of the layer."""
    parameters = dict(job.built.module.named_parameters())
    found: dict[str, list[nn.Parameter]] = {}
    for name in (name for row in job.plan.rows for name in row.trainable):
        if (path := adapted_layer(name)) is not None:
            found.setdefault(path, []).append(parameters[name])
    return found


def _second_factors(module: nn.Module) -> list[nn.Parameter]:
    """Each B: zero at first, and A has no gradient then. What follows could not be told from it."""
    return [parameter for name, parameter in module.named_parameters() if name.endswith(".lora_B.weight")]


def _zeros(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters without a number other than zero, which may be scales."""
    return {name: p for name, p in module.named_parameters() if "bias" not in name and not p.any()}


def _silent(job: Job, adapters: dict[str, list[nn.Parameter]], numbers: Sequence[int]) -> list[str]:
    """The layers, of these, whose adapters have no gradient from any batch of these numbers."""
    built = job.built
    modes = partial(set_modes, built.module, job.plan, built.blocks, job.plan.last_stage)
    for number in numbers:
        if not adapters:
            break
        batch = some_batch(job, _NUM_IMAGES, number)
        given = (as_inputs(job, batch), *(() if job.captions is None else (job.captions(batch),)))
        parameters = [parameter for own in adapters.values() for parameter in own]
        found = iter(gradients_of(partial(built.module, *given), built.module, parameters, modes, number))
        gradients = {path: [next(found) for _ in own] for path, own in adapters.items()}
        adapters = {
            path: adapters[path]
            for path, own in gradients.items()
            if not any(gradient is not None and gradient.any() for gradient in own)
        }
    return list(adapters)


@contextmanager
def _filled(parameters: Sequence[nn.Parameter], spread: float) -> Iterator[None]:
    """While it lasts there are random numbers in them; afterwards they are what they were, bit for bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        yield
    finally:
        with torch.no_grad():
            for parameter, numbers in zip(parameters, before, strict=True):
                parameter.copy_(numbers)


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training
