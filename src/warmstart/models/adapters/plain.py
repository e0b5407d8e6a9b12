"""The weights of a file of ours as a plain model has them, whatever they were trained with."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from warmstart.models.adapters.four_bit import in_floats
from warmstart.models.adapters.inject import merged
from warmstart.models.metadata import expand, lora_in


def plain_state(file: str | Path) -> dict[str, Tensor]:
    """A state_dict of the model without adapters: those in the file are merged into its weights."""
    with safe_open(file, "pt") as opened:
        lora = lora_in(expand(opened.metadata() or {}), str(file))
    state = in_floats(load_file(file))
    return state if lora is None else merged(state, lora)
