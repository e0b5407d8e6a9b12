"""The stages of --unfreeze: when each begins, at which base rate, and what trains from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from warmstart.adapt.patterns import match_blocks
from warmstart.config.schema import AdaptConfig
from warmstart.config.unfreezing import PLATEAU, Trigger, Unfreeze
from warmstart.errors import UserError, listing


@dataclass(frozen=True)
class Stage:
    """What begins it, and the base rate from then on as a share of --lr; `sets_rate`: it is the stage's own."""

    trigger: Trigger
    factor: float = 1.0
    sets_rate: bool = False


def make_stages(
    names: Sequence[str], adapt: AdaptConfig, base: float
) -> tuple[tuple[Stage, ...], dict[str, int]]:
    """The stages, and block -> the stage from which it may train; absent: never. Without --unfreeze there is one.

    Raises:
        UserError: nothing trains at first, an entry adds no block, or one stage has two rates.
    """
    if not adapt.unfreeze:
        return (Stage(Trigger("epochs")),), dict.fromkeys(names, 0)
    stages: list[Stage] = []
    starts: dict[str, int] = {}
    for entries in _together(adapt.unfreeze):
        for entry in entries:
            matched = match_blocks(entry.pattern, names, f"--unfreeze {entry.trigger}")
            new = [name for name in matched if name not in starts]
            if not new:
                raise UserError(
                    f"--unfreeze {entry} unfreezes nothing: {listing(matched)} train already by then",
                    "each entry to name at least one block that is still frozen",
                )
            starts.update(dict.fromkeys(new, len(stages)))
        stages.append(_stage(entries, base, stages[-1].factor if stages else 1.0))
    first = stages[0].trigger
    if not first.is_start:
        # Training nothing until the first entry would be a waste that no one asks for on purpose.
        when = {"epochs": f"before epoch {first}", "steps": f"before step {first.value:g}"}
        raise UserError(
            f"--unfreeze names no block for epoch 0, so nothing would train {when.get(first.kind, f'until {first}')}",
            "an entry for epoch 0, such as 0:head",
        )
    return tuple(stages), starts


def frozen_blocks(names: Sequence[str], adapt: AdaptConfig, starts: Mapping[str, int]) -> frozenset[str]:
    """Blocks that never train: those of --freeze, and those that no stage begins with.

    UserError: a pattern that names no block.
    """
    frozen = {name for pattern in adapt.freeze for name in match_blocks(pattern, names, "--freeze")}
    return frozenset(frozen.union(name for name in names if name not in starts))


def _together(entries: Sequence[Unfreeze]) -> list[list[Unfreeze]]:
    """Neighbours that wait for the same thing are one stage; of two plateaus, the second comes after the first."""
    groups: list[list[Unfreeze]] = []
    for entry in entries:
        before = groups[-1][0].trigger if groups else None
        is_same = entry.trigger == before or (
            before is not None and before.is_start and entry.trigger.is_start
        )
        if is_same and entry.trigger.kind != PLATEAU:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _stage(entries: Sequence[Unfreeze], base: float, before: float) -> Stage:
    rates = {entry.rate for entry in entries if entry.rate is not None}
    if len(rates) > 1:
        raise UserError(
            f"--unfreeze {','.join(map(str, entries))}: one stage with {len(rates)} base rates",
            "one @RATE for each stage",
            "--lrs gives blocks rates of their own",
        )
    factor = next(iter(rates)) / base if rates else before
    return Stage(entries[0].trigger, factor, bool(rates))
