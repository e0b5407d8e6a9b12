"""A model without some of its channels: which hang together, which of them matter least, and a copy without these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.methods.compress.channels import Chosen, Group
from warmstart.methods.compress.choosing import (
    Costs,
    ShareOf,
    choose_each,
    choose_global,
    inputs_left,
    lowest,
)
from warmstart.methods.compress.importance import Loss, importance
from warmstart.methods.compress.pruning import find_groups, pruned

_SLACK = 0.01  # of the model's MACs: one channel of a small model is as much


def _same_of_all(group: Group, level: float) -> float:
    return level


@dataclass(frozen=True)
class Target:
    """What is pruned. `head` is the path of its classifier, `example` (1, C, H, W) an input, `name` what it is called.

    `may_lose` says whether the outputs of the layer at a path may get fewer.
    """

    module: nn.Module
    head: str
    example: Tensor
    name: str
    may_lose: Callable[[str], bool] = lambda path: True


@dataclass(frozen=True)
class How:
    """Which units go first. `scope` is global (all units compete), block (each group loses the same share, or what
    `share_of` says) or embedding (only inputs of the classifier)."""

    importance: str = "l1"
    scope: str = "global"
    seed: int = 0
    share_of: ShareOf = _same_of_all


@dataclass(frozen=True)
class Pruned:
    """The smaller model; MACs of one image before and after; and (units gone, units there were) of each group."""

    module: nn.Module
    macs: tuple[float, float]
    gone: Mapping[str, tuple[int, int]]

    @property
    def saved(self) -> float:
        before, after = self.macs
        return 1 - after / before


def groups_of(target: Target, scope: str) -> tuple[Group, ...]:
    """The groups that may lose units.

    Raises:
        UserError: there are none, or the classifier's inputs are tied to more than channels.
    """
    found = find_groups(target.module, target.example, target.head, target.name)
    allowed = tuple(group for group in found if all(map(target.may_lose, group.made_by)))
    if not allowed:
        raise UserError(
            "every channel that could go is made by a layer that is to stay as it is",
            f"layers such as {', '.join(group.name for group in found[:3])}",
            "other --layers, or fewer --keep",
        )
    if scope != "embedding":
        return allowed
    embedding = tuple(group for group in allowed if group.feeds(target.head))
    if not embedding:
        raise UserError(
            f"{target.name}: the inputs of its classifier cannot be made fewer by themselves: they are the stream that "
            "all its blocks add to",
            "a model whose last layers make the embedding",
            "--scope global or block",
        )
    return embedding


def prune(target: Target, amount: float, how: How, losses: Iterable[Loss] = ()) -> Pruned:
    """A copy of the model without the least important units, so many that `amount` of its MACs is saved; with scope
    embedding so many that `amount` of the classifier's inputs is gone.

    Raises:
        UserError: nothing can be removed, or not so much; see find_groups, importance and pruned.
    """
    groups = groups_of(target, how.scope)
    scores = importance(target.module, groups, how.importance, how.seed, losses)
    costs = Costs(target.module, groups, target.example)
    wanted = (1 - amount) * costs.total
    if how.scope == "embedding":
        left = partial(inputs_left, groups, target.head)
        chosen = choose_global(groups, scores, left, (1 - amount) * left([frozenset()] * len(groups)))
    elif how.scope == "block":
        chosen = choose_each(groups, scores, costs.left, wanted, how.share_of)
    else:
        chosen = choose_global(groups, scores, costs.left, wanted)
    if how.scope != "embedding":
        _check_reached(costs, scores, wanted)
    module = pruned(target.module, groups, chosen, target.example, target.name)
    after = Costs(module, (), target.example).total
    gone = {
        group.name: (len(units), group.num_units)
        for group, units in zip(groups, chosen, strict=True)
        if units
    }
    return Pruned(module, (costs.total, after), gone)


def _check_reached(costs: Costs, scores: list[Tensor | None], wanted: float) -> None:
    all_of_them: Chosen = [frozenset(units) for units in lowest(costs.groups, scores)]
    least = costs.left(all_of_them)
    if least > wanted + _SLACK * costs.total:
        raise UserError(
            f"{1 - wanted / costs.total:.2f} of the MACs cannot be removed at once: the channels that may go have "
            f"at most {1 - least / costs.total:.2f} of them",
            f"an amount up to {1 - least / costs.total:.2f}",
            "rounds of less (--target-macs with a smaller --step), more --layers, or fewer --keep",
        )
