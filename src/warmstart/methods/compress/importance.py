"""How much each unit of channels matters: by its weights, its norm's scale, the loss, or chance.

l1, l2: what the weights of the unit add up to, |w| or w^2, averaged over the layers of its group (Li et al. 2017, arXiv
1608.08710; over groups: Fang et al. 2023, arXiv 2301.12900). bn: the scales |gamma| of its batch norms (Liu et
al. 2017, Network Slimming, arXiv 1708.06519). taylor: the square of the change in loss when what the unit gives to its
readers becomes zero, to first order: (sum g w)^2 over the weights that read it, averaged over batches (Molchanov et al.
2019, arXiv 1906.10771, equation 8 with a gate on each unit). random: the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from warmstart.errors import UserError
from warmstart.methods.compress.channels import NORMS, Group, Member, Side

IMPORTANCES = ("l1", "l2", "bn", "taylor", "random")
# The mean loss of one batch of training images.
Loss = Callable[[nn.Module], Tensor]


def importance(
    module: nn.Module, groups: Sequence[Group], kind: str, seed: int, losses: Iterable[Loss] = ()
) -> list[Tensor | None]:
    """A score per unit of each group, float64, on the CPU; None: this kind cannot say, and the group stays whole.

    l1, l2 and bn have a mean of 1 in each group, because layers differ in scale; Taylor scores, squared changes of one
    loss, are compared as they are. `losses` are asked for taylor only; gradients of the module are cleared.

    Raises:
        UserError: bn of a model without batch norms, or taylor without images.
    """
    assert kind in IMPORTANCES, kind
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(group.num_units, generator=generator, dtype=torch.float64) for group in groups]
    if kind == "taylor":
        return list(_taylor(module, groups, losses))
    scores = [_magnitude(module, group, kind) for group in groups]
    if all(score is None for score in scores):
        raise UserError(
            "importance bn: no channels that can go have a batch norm",
            "a model with batch norms",
            "--importance l1, l2 or taylor",
        )
    return scores


def _magnitude(module: nn.Module, group: Group, kind: str) -> Tensor | None:
    found = []
    for member in group.members:
        if member.side in (Side.PARAMETER, Side.HEADS):
            continue
        layer = module.get_submodule(member.path)
        weight = getattr(layer, "weight", None)
        is_norm = isinstance(layer, NORMS)
        if weight is None or (kind == "bn" and not isinstance(layer, _NormBase)):
            continue
        values = weight.detach().double().cpu()
        values = values.square() if kind == "l2" else values.abs()
        found.append(_per_unit(values if is_norm else _per_channel(values, layer, member.side), member))
    if not found:
        return None
    score = torch.stack(found).mean(dim=0)
    return score / score.mean().clamp_min(torch.finfo(torch.float64).tiny)


def _taylor(module: nn.Module, groups: Sequence[Group], losses: Iterable[Loss]) -> list[Tensor]:
    wanted = {member.path for group in groups for member in _readers(group)}
    totals = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]
    num_batches = 0
    was_asked = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.eval().requires_grad_(True)
    for loss in losses:
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(module).backward()
        changes = {path: _products(module.get_submodule(path)) for path in wanted}
        for total, group in zip(totals, groups, strict=True):
            parts = [
                _per_unit(
                    _per_channel(changes[member.path], module.get_submodule(member.path), member.side), member
                )
                for member in _readers(group)
            ]
            total += torch.stack(parts).sum(dim=0).square()
        num_batches += 1
    module.zero_grad(set_to_none=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(was_asked[name])
    if num_batches == 0:
        raise UserError(
            "importance taylor: there is no training image to find gradients with",
            "--calibration of one image at least",
        )
    return [total / num_batches for total in totals]


def _products(layer: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight")
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    return (weight.detach() * gradient).double().cpu()


def _readers(group: Group) -> list[Member]:
    """The layers that read the unit's channels; where none is known, those that make them."""
    reading = [member for member in group.members if member.side is Side.IN]
    return reading or [member for member in group.members if member.side is Side.OUT]


def _per_channel(values: Tensor, layer: nn.Module, side: Side) -> Tensor:
    """Sums over all weights (as `values`) of each output or input of a linear layer or convolution."""
    if values.ndim == 1:
        return values
    is_transposed = isinstance(layer, _ConvTransposeNd)
    if side is Side.IN and isinstance(layer, _ConvNd) and layer.groups > 1:
        return values.unflatten(0, (layer.groups, -1)).flatten(3).sum(dim=(1, 3)).flatten()
    if (side is Side.IN) != is_transposed and side is not Side.BOTH:
        values = values.transpose(0, 1)
    return values.flatten(1).sum(dim=1)


def _per_unit(channels: Tensor, member: Member) -> Tensor:
    return torch.stack([channels[list(unit)].sum() for unit in member.units])
