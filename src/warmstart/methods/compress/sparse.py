"""Single weights set to zero by their magnitude (Han et al. 2015, arXiv 1506.02626): they stay zero in training.

Nothing gets faster or smaller by it on ordinary hardware, which computes with zeros as with other numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from warmstart.methods.compress.layers import chosen_layers
from warmstart.methods.compress.subject import Edited, Subject
from warmstart.models.recipe import SPARSE
from warmstart.records import Edit


def sparsify(subject: Subject, amount: float) -> Edited:
    """Set this share of the weights that are not zero yet to zero, the smallest of all, or of each block."""
    paths = chosen_layers(subject, _refusal)
    module = copy.deepcopy(subject.built.module)
    groups: dict[str, list[str]] = {}
    owner = {name: block.name for block in subject.built.blocks for name in block.parameters}
    for path in paths:
        key = owner[f"{path}.weight"] if subject.settings.scope == "block" else ""
        groups.setdefault(key, []).append(path)
    num_zero = num_all = 0
    for members in groups.values():
        weights = [module.get_submodule(path).get_parameter("weight") for path in members]
        _zero_smallest(weights, amount)
        num_zero += sum(int((weight == 0).sum()) for weight in weights)
        num_all += sum(weight.numel() for weight in weights)
    told = (
        f"{num_zero / num_all:.1%} of the {num_all} weights of {len(paths)} layers are zero; files and computing "
        "are as large as before"
    )
    recipe = subject.built.recipe
    known = [path for edit in recipe.edits if edit.kind == SPARSE for path in edit.layers] if recipe else []
    fresh: dict[str, bool] = {path: True for path in paths if path not in known}
    return Edited(module, (Edit(SPARSE, fresh),) if fresh else (), (told,))


@torch.no_grad()
def _zero_smallest(weights: Sequence[Tensor], amount: float) -> None:
    """In place; of equals, the first."""
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    num_zero = int((magnitudes == 0).sum())
    num = num_zero + round(amount * (len(magnitudes) - num_zero))
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    keep[torch.argsort(magnitudes, stable=True)[:num]] = False
    first = 0
    for weight in weights:
        weight.mul_(keep[first : first + weight.numel()].view(weight.shape))
        first += weight.numel()


def _refusal(layer: nn.Module) -> str | None:
    if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        return None
    return f"is a {type(layer).__name__}, whose weight is no matrix"
