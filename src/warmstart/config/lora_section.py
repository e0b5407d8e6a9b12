"""The section `lora`: low-rank adapters that train instead of the backbone's own weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from warmstart.config.section import Section
from warmstart.config.values import Bits, Names, OptionalFloat, OptionalInt


class LoraConfig(Section):
    """Low-rank adapters in place of the backbone's weights."""

    rank: OptionalInt = Field(
        None, ge=1, description="LoRA: rank of the adapters, the backbone stays frozen; none: no adapters"
    )
    alpha: OptionalFloat = Field(
        None, gt=0, description="LoRA: updates are scaled by alpha / rank [default: 2 x rank]"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA: dropout rate in front of every adapter")
    targets: Names = Field(
        (),
        description="LoRA: layers that get adapters: ends of paths (q_proj,v_proj), globs, or all-linear"
        " [default: by the model's family]",
    )
    kind: Literal["lora", "rslora", "dora"] = Field(
        "lora", description="LoRA: lora, rslora (scaled by alpha / sqrt(rank)) or dora (norms train apart)"
    )
    bits: Bits = Field(
        None, description="QLoRA: 4 keeps the weights of adapted linear layers in 4 bits (nf4)"
    )
