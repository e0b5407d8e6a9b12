"""Which low-rank adapters a run trains: the settings of the section `lora` -> layers of its model."""

from __future__ import annotations

from typing import Any

from warmstart.adapt.patterns import freeze_text_tower, with_margin_head
from warmstart.adapt.stages import frozen_blocks, make_stages
from warmstart.config.schema import Config
from warmstart.errors import UserError, listing
from warmstart.models.adapters.targets import resolve_targets
from warmstart.models.build import BuiltModel, ChooseLora, no_adapters
from warmstart.records import Lora


def choose_lora(config: Config, recorded: dict[str, Any] | None = None) -> ChooseLora:
    """What `build` asks: the adapters that the settings describe, or those that the run has `recorded` before.

    The answer raises UserError where the settings name no layer of the model, or only such as cannot have an adapter.
    """
    lora = config.lora
    if lora.rank is None:
        return no_adapters
    rank, alpha = lora.rank, lora.alpha or 2.0 * lora.rank

    def choose(built: BuiltModel) -> tuple[Lora | None, tuple[str, ...]]:
        if recorded is not None:
            return Lora.from_json(recorded), ()
        names = [block.name for block in built.blocks]
        adapt = freeze_text_tower(config.adapt, config.text, names)
        adapt = adapt if built.margin is None else with_margin_head(adapt, names)
        _, starts = make_stages(names, adapt, config.optim.lr)
        frozen = frozen_blocks(names, adapt, starts)
        targets = resolve_targets(built.module, built.blocks, frozen, lora.targets, rank, built.preprocessing)
        return Lora(lora.kind, rank, alpha, lora.dropout, targets.paths, lora.bits), targets.notes

    return choose


def check_kept(recorded: dict[str, Any] | None, now: Lora | None, whose: str) -> None:
    """UserError unless the adapters of a parent, as it has `recorded` them, are those that its child would train."""
    before = None if recorded is None else Lora.from_json(recorded)
    if before is now is None or (before is not None and now is not None and now.fits(before)):
        return
    raise UserError(
        f"{whose} has {described(before)}, and here the model would have {described(now)}",
        "the parent's settings of --lora, and its frozen blocks",
        "--keep weights, which merges the parent's adapters into its weights",
    )


def described(lora: Lora | None) -> str:
    """The adapters of a model in words."""
    if lora is None:
        return "no adapters"
    form = f"{lora.kind}, rank {lora.rank}, alpha {lora.alpha:g}"
    form += "" if lora.bits is None else f", base in {lora.bits} bits"
    return f"adapters ({form}) at {len(lora.targets)} layers ({listing(lora.targets, 3)})"
