"""Tiny models of transformers with random weights, and the folders that save_pretrained writes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

TOKENS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS |= {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "window_size": 4}
MIT = {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}


def tiny(kind: str, family: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**options)
        return getattr(transformers, f"{family}{kind}")(config).eval()

    return make


def saved(make: Callable[[], nn.Module], folder: Path, **processor: Any) -> tuple[str, Any]:
    """The name of the model in `folder`, and the model."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    module: Any = make()
    module.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}", module
