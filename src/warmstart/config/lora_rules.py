"""Rules for the section `lora`. No torch."""

from __future__ import annotations

from warmstart.config.lora_section import LoraConfig
from warmstart.config.schema import Config
from warmstart.errors import UserError


def lora_problems(config: Config) -> list[UserError]:
    """What holds weights to their start, beside adapters: those that train are no weights of the start model."""
    if config.lora.rank is None:
        return []
    return [
        UserError(
            f"--retain.{name} holds weights near those of the start model, and with --lora.rank these do not move",
            "--retain.lwf, which holds on to answers, or --retain.replay",
            "a smaller --lora.rank or --lr keeps the model nearer to its start",
        )
        for name in ("l2sp", "ewc")
        if getattr(config.retain, name)
    ]


def unread_lora_settings(lora: LoraConfig) -> dict[str, str]:
    """Path of a setting -> why nothing reads it."""
    if lora.rank is not None:
        return {}
    return {f"lora.{name}": "without --lora.rank" for name in LoraConfig.model_fields if name != "rank"}
