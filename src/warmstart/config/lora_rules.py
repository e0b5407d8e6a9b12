"""Rules for the section `lora`. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from warmstart.config.lora_section import LoraConfig
from warmstart.config.schema import Config
from warmstart.errors import UserError


def lora_problems(config: Config, origins: Mapping[str, str]) -> list[UserError]:
    """Settings of adapters that there are none of, and what holds weights to their start beside adapters.

    `origins` are those of settings by path. Where the rank is taken away from a preset, a file or a parent, what these
    say of adapters is not refused but warned of.
    """
    if config.lora.rank is None:
        return _without_rank(config.lora, origins)
    # Those that train are no weights of the start model.
    return [
        UserError(
            f"--retain.{name} holds weights near those of the start model, and with --lora.rank these do not move",
            "--retain.lwf, which holds on to answers, or --retain.replay",
            "a smaller --lora.rank or --lr keeps the model nearer to its start",
        )
        for name in ("l2sp", "ewc")
        if getattr(config.retain, name)
    ]


def _without_rank(lora: LoraConfig, origins: Mapping[str, str]) -> list[UserError]:
    given = [
        name
        for name, field in LoraConfig.model_fields.items()
        if getattr(lora, name) != field.default
        and ("lora.rank" not in origins or origins.get(f"lora.{name}") == "flag")
    ]
    return [
        UserError(
            f"--lora.{name} without --lora.rank: there are no adapters",
            "the rank of the adapters",
            f"add --lora.rank 8, or leave --lora.{name} out",
        )
        for name in given
    ]


def unread_lora_settings(lora: LoraConfig) -> dict[str, str]:
    """Path of a setting -> why nothing reads it."""
    if lora.rank is not None:
        return {}
    return {f"lora.{name}": "without --lora.rank" for name in LoraConfig.model_fields if name != "rank"}
