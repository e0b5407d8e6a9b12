"""Low-rank factorisation: a layer's matrix W becomes the product B A of rank r, by its singular values.

Eckart & Young 1936: cut after r singular values, B A is the nearest matrix of rank r. Every layer keeps the same share
of its squared singular values (its energy), as given, or as large as a budget of MACs allows; a layer that two would
cost more than stays one. Convolutions are taken as matrices in two ways (models/recipe.py), of which the cheaper is
used: E x (D k l), and (D k) x (E l) (Jaderberg et al. 2014, arXiv 1405.3866). Shapes: D inputs, E outputs, k x l kernel
size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.methods.compress.choosing import lowest_level
from warmstart.methods.compress.layers import chosen_layers
from warmstart.methods.compress.subject import Edited, Subject
from warmstart.models.macs import count_macs
from warmstart.models.recipe import FACTORISE, LOW_RANK, SEPARABLE, difference, factors, put, unfactorable
from warmstart.models.zoo import outline
from warmstart.records import Edit


@dataclass(frozen=True)
class _Factors:
    """A layer's matrix, decomposed: u (m, n) and v (n, m'), with the squared singular values `energies` (n,).

    `unit` MACs are what each rank costs, `whole` what the layer costs now; `rank` is of a layer that is two already.
    """

    form: str
    u: Tensor
    v: Tensor
    energies: Tensor
    unit: float
    whole: float
    rank: int | None

    def rank_at(self, energy: float) -> int:
        """The smallest that keeps this share of the energy."""
        kept = torch.cumsum(self.energies, 0) / self.energies.sum().clamp_min(1e-30)
        return min(int((kept < energy).sum()) + 1, len(self.energies))

    def cost_at(self, energy: float) -> float:
        return min(self.whole, self.rank_at(energy) * self.unit)


def factorise(subject: Subject, amount: float) -> Edited:
    """Two layers in place of each one that this saves MACs of, so that `amount` of all MACs goes (or by --energy).

    Layers that were factorised before get a smaller rank.

    Raises:
        UserError: so much cannot be removed, or nothing at all.
    """
    module = copy.deepcopy(subject.built.module)
    decomposed = _decompose(subject, module)
    total = float(count_macs(module, subject.example()))
    energy = subject.settings.energy or _energy_for(decomposed, total, amount)
    before, layers = copy.deepcopy(module), dict[str, dict[str, object]]()
    cut: list[str] = []
    for path, forms in decomposed.items():
        best = min(forms, key=lambda each: each.cost_at(energy))
        rank = best.rank_at(energy)
        if rank * best.unit >= best.whole:
            continue
        layer = module.get_submodule(path)
        if best.rank is None:
            layers[path] = {"rank": rank, "form": best.form}
            put(module, path, _product(layer, best, rank))
        else:
            assert isinstance(layer, nn.Sequential), "two layers already"
            cut.append(path)
            put(module, path, _smaller(layer, best, rank))
    if not layers and not cut:
        raise UserError(
            f"at an energy of {energy:.4g} no layer of {subject.built.name} costs less as two",
            "--amount, or a smaller --energy",
            "--method prune takes out channels instead",
        )
    edits: list[Edit] = []
    if cut:  # what was two layers before is smaller now
        resized = copy.deepcopy(before)
        for path in cut:
            put(resized, path, copy.deepcopy(module.get_submodule(path)))
        edits.append(difference(before, resized))
    edits += [Edit(FACTORISE, layers)] if layers else []
    told = f"{len(layers) + len(cut)} of {len(decomposed)} layers keep {energy:.4g} of their energy as two layers each"
    return Edited(module, tuple(edits), (told,))


def _energy_for(decomposed: Mapping[str, list[_Factors]], total: float, amount: float) -> float:
    """The largest share of energy at which `amount` of the `total` MACs are gone, by bisection."""

    def saved(energy: float) -> float:
        best = (min((each.cost_at(energy), each.whole) for each in forms) for forms in decomposed.values())
        return sum(whole - cost for cost, whole in best)

    if saved(0.0) < amount * total:
        raise UserError(
            f"factorising cannot remove {amount:.0%} of the MACs",
            f"at most {saved(0.0) / total:.0%}: all layers that it can take at rank 1",
            "a smaller --amount (in a search, --step), or --method prune",
        )
    return 1 - lowest_level(lambda lost: saved(1 - lost) >= amount * total)


def _decompose(subject: Subject, module: nn.Module) -> dict[str, list[_Factors]]:
    """Every layer that may be factorised, in each form."""
    macs = _macs_of_layers(module, subject.example())
    recipe, stem = subject.built.recipe, outline(subject.built.name).first_conv
    edits = [edit for edit in recipe.edits if edit.kind == FACTORISE] if recipe else []
    pairs = {path: str(form["form"]) for edit in edits for path, form in edit.layers.items()}
    names = {id(layer): path for path, layer in subject.built.module.named_modules()}

    def refusal(layer: nn.Module) -> str | None:
        path = names[id(layer)]
        if path == stem:
            return "takes the image's channels"
        never = "is never called: the model computes with its weight by itself"
        return unfactorable(layer) or (None if path in macs else never)

    found: dict[str, list[_Factors]] = {}
    for path in chosen_layers(subject, refusal):
        pair = next((each for each in pairs if path in (f"{each}.0", f"{each}.1")), None)
        if pair is None:
            layer = module.get_submodule(path)
            forms = (LOW_RANK, SEPARABLE) if _has_kernel(layer) else (LOW_RANK,)
            found[path] = [_of_layer(layer, form, *macs[path]) for form in forms]
        elif pair not in found and all(f"{pair}.{number}" in macs for number in (0, 1)):
            whole = sum(macs[f"{pair}.{number}"][0] for number in (0, 1))
            found[pair] = [_of_pair(module.get_submodule(pair), pairs[pair], whole)]
    return found


def _has_kernel(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1


def _of_layer(layer: nn.Module, form: str, whole: float, ratio: float) -> _Factors:
    """`ratio` is that of the layer's input columns to its output columns."""
    weight = layer.get_parameter("weight").detach().double().cpu()
    positions = whole / weight.numel()
    if form == LOW_RANK:
        matrix = weight.flatten(1)
        unit = positions * (matrix.shape[0] + matrix.shape[1])
    else:
        matrix = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (D k, E l)
        unit = positions * (ratio * matrix.shape[0] + matrix.shape[1])
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return _Factors(form, u * s.sqrt(), s.sqrt()[:, None] * v, s.square(), unit, whole, None)


def _of_pair(pair: nn.Module, form: str, whole: float) -> _Factors:
    first, second = (
        pair.get_submodule(number).get_parameter("weight").detach().double().cpu() for number in "01"
    )
    rank = len(first)
    if form == LOW_RANK:
        matrix = second.flatten(1) @ first.flatten(1)
    else:
        matrix = first.flatten(1).T @ second.transpose(0, 1).flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]  # what is beyond is rounding
    return _Factors(form, u * s.sqrt(), s.sqrt()[:, None] * v, s.square(), whole / rank, whole, rank)


def _product(layer: nn.Module, found: _Factors, rank: int) -> nn.Sequential:
    """The two layers whose product is the nearest to the layer."""
    pair = factors(layer, rank, found.form)
    _fill(pair, found, rank)
    if layer.bias is not None:
        with torch.no_grad():
            pair[1].get_parameter("bias").copy_(layer.get_parameter("bias"))
    return pair


def _smaller(pair: nn.Sequential, found: _Factors, rank: int) -> nn.Sequential:
    """The same two layers with fewer between them."""
    made = copy.deepcopy(pair)
    for layer, size, side in ((made[0], "out", 0), (made[1], "in", 1)):
        name = f"{size}_features" if isinstance(layer, nn.Linear) else f"{size}_channels"
        setattr(layer, name, rank)
        weight = layer.get_parameter("weight")
        layer.weight = nn.Parameter(weight.detach().narrow(side, 0, rank).clone())
    _fill(made, found, rank)
    return made


@torch.no_grad()
def _fill(pair: nn.Sequential, found: _Factors, rank: int) -> None:
    first, second = (layer.get_parameter("weight") for layer in pair)
    u, v = found.u[:, :rank], found.v[:rank]
    if found.form == LOW_RANK:
        first.copy_(v.reshape(first.shape))
        second.copy_(u.reshape(second.shape))
        return
    first.copy_(u.T.reshape(first.shape))
    num_outputs, length = second.shape[0], second.shape[3]
    second.copy_(v.reshape(rank, num_outputs, 1, length).transpose(0, 1))


def _macs_of_layers(module: nn.Module, images: Tensor) -> dict[str, tuple[float, float]]:
    """By path, of every linear layer and convolution that is called: MACs, and input columns per output column."""
    found: dict[str, tuple[float, float]] = {}

    def count(path: str, layer: nn.Module, given: Tensor, made: Tensor) -> None:
        weight = layer.get_parameter("weight")
        positions = made.numel() / len(weight)
        ratio = given.shape[-1] / made.shape[-1] if isinstance(layer, nn.Conv2d) else 1.0
        before = found.get(path, (0.0, ratio))[0]
        found[path] = (before + positions * weight.numel(), ratio)

    hooks = [
        layer.register_forward_hook(lambda part, given, made, path=path: count(path, part, given[0], made))
        for path, layer in module.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
