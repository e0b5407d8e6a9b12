"""Optimizers by name, and their state by parameter name.

State by name survives what indices do not: unfreezing, another grouping, another memory layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from warmstart.adapt.apply import Group
from warmstart.config.schema import OptimConfig
from warmstart.errors import UserError, closest
from warmstart.models.zoo import import_timm

# Of a group: what the plan says, and how a device computes; the rest may be state (timm's `step`) and is kept.
_NOT_STATE = ("params", "names", "block", "base_lr", "lr", "weight_decay", "fused", "foreach", "capturable")
_OF_GROUP = "@group"

# Tensors by KEY.PARAMETER, everything else as JSON.
OptimizerState = tuple[dict[str, torch.Tensor], dict[str, Any]]


def check_optimizer(optim: OptimConfig, device: torch.device) -> None:
    """Try timm's optimizers on a tiny model, so that nothing is trained that cannot be saved.

    Raises:
        UserError: timm's factory knows no such optimizer, it needs a second-order graph or something that
            is not installed here, or a checkpoint cannot hold its state.
    """
    name = optim.optimizer
    if name.lower() in ("adamw", "sgd"):
        return
    import_timm()  # explains the one import failure that users meet
    from timm.optim import get_optimizer_info, list_optimizers

    known = list_optimizers()
    if name.lower() not in known:
        raise UserError(
            f"--optimizer {name!r} is unknown",
            "adamw, sgd, or a name of timm's optimizer factory",
            closest(name.lower(), ["adamw", "sgd", *known]),
        )
    if get_optimizer_info(name.lower()).second_order:
        raise UserError(
            f"--optimizer {name} needs second-order gradients, which this loop does not keep",
            "a first-order optimizer such as adamw",
        )
    weight = nn.Parameter(torch.ones(2, 2, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        optimizer = make_optimizer(optim, (Group("trial", optim.lr, 0.0, ("weight",), (weight,)),), device)
        optimizer.step()
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"--optimizer {name} cannot be used here: {error}", "an optimizer such as adamw or sgd"
        ) from error
    try:
        state_by_name(optimizer)
    except UserError as error:
        raise UserError(f"--optimizer {name}: {error.happened}", error.expected) from None


def check_zeros(optim: OptimConfig, device: torch.device) -> None:
    """Try the optimizer on a matrix half of whose weights are zero, and get no gradient.

    Raises:
        UserError: they do not stay zero: it moves a weight by the gradients of others (muon, kron).
    """
    generator = torch.Generator().manual_seed(0)
    kept = (torch.arange(64).view(8, 8) % 3 > 0).float()
    weight = nn.Parameter((torch.randn(8, 8, generator=generator) * kept).to(device))
    optimizer = make_optimizer(optim, (Group("trial", optim.lr, 0.1, ("weight",), (weight,)),), device)
    for _ in range(3):
        weight.grad = (torch.randn(8, 8, generator=generator) * kept).to(device)
        optimizer.step()
    if (weight.detach().cpu()[kept == 0] != 0).any():
        raise UserError(
            f"--optimizer {optim.optimizer} moves weights that the model's recipe keeps at zero (compress --method "
            "sparse)",
            "an optimizer that moves each weight by its own gradient",
            "--optimizer adamw or sgd",
        )


def make_optimizer(
    optim: OptimConfig, groups: Sequence[Group], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer over a stage's groups; each torch group carries `block`, `names` and `base_lr`."""
    rows: list[dict[str, Any]] = [
        {
            "params": list(group.parameters),
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "block": group.block,
            "names": group.names,
            "base_lr": group.lr,
        }
        for group in groups
    ]
    name = optim.optimizer.lower()
    fused = device.type in ("cpu", "cuda")
    if name == "adamw":
        return torch.optim.AdamW(rows, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(
            rows, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused
        )
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(
        rows,
        opt=name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        filter_bias_and_bn=False,
    )


def state_by_name(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """(tensors as `KEY.PARAMETER`, everything else as JSON values) of an optimizer's state.

    What an optimizer keeps per group (timm's lamb: its step) goes by the name of the group's first parameter,
    tensors as `KEY@group.PARAMETER`.

    Raises:
        UserError: the optimizer keeps state that is neither a tensor nor a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {"parameters": {}, "groups": {}}
    for group in optimizer.param_groups:
        extras = {}
        for key in sorted(group.keys() - set(_NOT_STATE)):
            value = group[key]
            if isinstance(value, torch.Tensor):
                tensors[f"{key}{_OF_GROUP}.{group['names'][0]}"] = value
            elif isinstance(value, (int, float, str, bool, type(None), list, tuple)):
                extras[key] = list(value) if isinstance(value, tuple) else value
        values["groups"][group["names"][0]] = extras
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key}.{name}"] = value
                elif isinstance(value, (int, float, bool, type(None))):
                    values["parameters"].setdefault(name, {})[key] = value
                else:
                    raise UserError(
                        f"the optimizer keeps {key!r} as {type(value).__name__}, which a checkpoint cannot hold",
                        "an optimizer with tensor state, such as adamw or sgd",
                    )
    return tensors, values


def without_settings(optim: OptimConfig, state: OptimizerState) -> OptimizerState:
    """The same state without what groups were set to (momentum, betas, ...): a new config says that anew."""
    trial = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer(optim, (Group("trial", optim.lr, 0.0, ("weight",), (trial,)),), trial.device)
    tensors, values = state
    groups = {
        name: {key: value for key, value in extras.items() if key not in optimizer.defaults}
        for name, extras in values["groups"].items()
    }
    return tensors, {**values, "groups": groups}


def restore_by_name(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]
) -> None:
    """Give every parameter and group back the state that its name had; those without any stay fresh.

    State shaped like its parameter is copied into the parameter's own memory layout: fused AdamW reads
    both with one index, so NCHW moments beside channels_last weights update the wrong elements silently.
    """
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in tensors.items():
        key, name = path.split(".", 1)
        by_parameter.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state: dict[str, Any] = dict(values["parameters"].get(name, {}))
            for key, value in by_parameter.get(name, {}).items():
                if key.endswith(_OF_GROUP):
                    group[key.removesuffix(_OF_GROUP)] = value.clone()
                    continue
                # Fused kernels want step counters beside the parameters, all others on the CPU.
                moves = key != "step" or group.get("fused") or group.get("capturable")
                state[key] = _laid_out_like(parameter, value, parameter.device if moves else value.device)
            if state:
                optimizer.state[parameter] = state
        for key, extra in values["groups"].get(group["names"][0], {}).items():
            group[key] = tuple(extra) if isinstance(group.get(key), tuple) else extra


def _laid_out_like(parameter: nn.Parameter, value: torch.Tensor, device: torch.device) -> torch.Tensor:
    if value.shape == parameter.shape and value.dim() > 0:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.clone().to(device)


def set_rates(optimizer: torch.optim.Optimizer, shape: float) -> list[float]:
    """Write rate = planned rate x shape into every group; the rates in force."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * shape
    return [group["lr"] for group in optimizer.param_groups]
