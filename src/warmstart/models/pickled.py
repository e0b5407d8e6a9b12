"""What checkpoints of other programs hold beside weights: epoch, optimizer, settings. Nothing in them is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from warmstart.config.ocec import PROGRAM, shape_in
from warmstart.models.shards import INDEX_SUFFIX
from warmstart.models.unwrap import harmless_classes

OPTIMIZERS = ("optimizer_state_dict", "optimizer_state", "optimizer")
SCHEDULERS = ("scheduler_state_dict", "scheduler_state", "scheduler", "lr_scheduler")


def content_of(file: Path) -> Mapping[Any, Any]:
    """Everything in a pickle that `read_weights` has read; {} of safetensors, which hold tensors and text alone."""
    with file.open("rb") as stream:
        is_pickle = stream.read(10)[8:] != b'{"' and not file.name.endswith(INDEX_SUFFIX)
    if not is_pickle:
        return {}
    # read_weights has explained what may go wrong.
    with torch.serialization.safe_globals(harmless_classes()):
        content = torch.load(file, map_location="cpu", weights_only=True)
    return content if isinstance(content, Mapping) else {}


def part(content: Any, key: str) -> Mapping[Any, Any]:
    """The mapping under a key, or an empty one."""
    found = content.get(key) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def first_part(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Mapping[Any, Any] | None:
    """The mapping under the first of the keys that has one."""
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)


def is_ocec_file(content: Mapping[Any, Any]) -> bool:
    """Whether document 001's program wrote it, or this one in its way."""
    is_ours = part(content, "train_config").get("program") == PROGRAM  # of any model
    return "model_state" in content and (is_ours or shape_in(part(content, "model_config")) is not None)


def first_epoch(content: Mapping[Any, Any]) -> int:
    """The number that a program gives to its first epoch."""
    return 1 if is_ocec_file(content) else 0
