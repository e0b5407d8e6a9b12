"""How much each block stands: val after pruning it alone, at a few shares of its channels, without any recovery.

Li et al. 2017 (arXiv 1608.08710, section 3.2) choose a share per layer by such curves. Here one level is for all: the
loss of the metric that no block alone may go beyond; each block loses as much of its channels as its curve allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warmstart.console import log, progress, table
from warmstart.methods.compress.channels import Group
from warmstart.methods.compress.choosing import MOST_OF_A_GROUP, Costs, ShareOf, lowest
from warmstart.methods.compress.prune import Target, groups_of
from warmstart.methods.compress.pruning import pruned
from warmstart.records import Block

SHARES = (0.25, 0.5, 0.75)
MOST_IMAGES = 1000  # of val, evenly spread: a curve is a coarse thing


@dataclass(frozen=True)
class Curve:
    """Of one block: after removing each of SHARES of its channels, the metric on val and the share of MACs saved."""

    block: str
    values: tuple[float, ...]
    saved: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """All curves; `whole` is the metric of the model as it is, on the same images."""

    metric: str
    whole: float
    num_images: int
    curves: tuple[Curve, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shares": SHARES}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sensitivity:
        curves = tuple(Curve(c["block"], tuple(c["values"]), tuple(c["saved"])) for c in values["curves"])
        return cls(values["metric"], values["whole"], values["num_images"], curves)

    def text(self) -> str:
        head = ("block", *(f"-{share:.0%} channels" for share in SHARES))
        rows = [
            (
                curve.block,
                *(f"{v:.4f} (-{s:.1%} MACs)" for v, s in zip(curve.values, curve.saved, strict=True)),
            )
            for curve in self.curves
        ]
        title = (
            f"val {self.metric} of {self.num_images} images after pruning one block alone, without recovery; "
            f"as it is: {self.whole:.4f}"
        )
        return table(title, head, rows)

    def share_of(self, blocks: Sequence[Block]) -> ShareOf:
        """Of a group, the share to remove at a level in [0, 1]: what its block loses the level (of the whole metric)
        by. A block that was not measured loses nothing."""
        curves = {curve.block: curve for curve in self.curves}
        block_of = block_finder(blocks)

        def share(group: Group, level: float) -> float:
            curve = curves.get(block_of(group))
            if curve is None:
                return 0.0
            drops = np.maximum.accumulate([0.0, *(self.whole - value for value in curve.values)])
            drops += np.arange(len(drops)) * 1e-9  # rising, for the inverse
            lost = level * max(self.whole, 1e-9)
            if lost >= drops[-1]:  # beyond what was measured: all that may go, at the level of everything
                end = max(self.whole, drops[-1]) + 1e-6
                return float(np.interp(lost, [drops[-1], end], [SHARES[-1], MOST_OF_A_GROUP]))
            return float(np.interp(lost, drops, [0.0, *SHARES]))

        return share


def block_finder(blocks: Sequence[Block]) -> Callable[[Group], str]:
    owner = {name: block.name for block in blocks for name in block.parameters}
    return lambda group: owner[f"{group.name}.weight"]


def measure_sensitivity(
    target: Target,
    scores_of: Callable[[Sequence[Group]], list[Any]],
    blocks: Sequence[Block],
    measure: Callable[[Any], tuple[str, float, int]],
) -> Sensitivity:
    """Prune each block alone at each of SHARES. `measure(module)` gives (metric, value on val, number of images).

    Raises:
        UserError: see groups_of.
    """
    groups = groups_of(target, "block")
    scores = scores_of(groups)
    costs, ordered, block_of = (
        Costs(target.module, groups, target.example),
        lowest(groups, scores),
        block_finder(blocks),
    )
    names = [block.name for block in blocks if any(block_of(group) == block.name for group in groups)]
    metric, whole, num_images = measure(target.module)
    log.info("sensitivity: %d passes over %d images of val", len(names) * len(SHARES), num_images)
    curves = []
    with progress("measuring blocks", len(names) * len(SHARES)) as bar:
        for number, name in enumerate(names):
            values, saved = [], []
            for place, share in enumerate(SHARES, 1):
                chosen = [
                    frozenset(units[: round(group.num_units * share)] if block_of(group) == name else ())
                    for group, units in zip(groups, ordered, strict=True)
                ]
                smaller = pruned(target.module, groups, chosen, target.example, target.name)
                values.append(measure(smaller)[1])
                saved.append(1 - costs.left(chosen) / costs.total)
                bar.update(number * len(SHARES) + place)
            curves.append(Curve(name, tuple(values), tuple(saved)))
    return Sensitivity(metric, whole, num_images, tuple(curves))
