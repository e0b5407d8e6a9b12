"""The classifier that document 004's program saves beside a model of transformers: classifier.pt, a linear layer's
state_dict, behind the model's pooled output. Names of classes and an image processor are not there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from warmstart.errors import UserError, listing
from warmstart.models.unwrap import Unwrapped

_NUM_EXAMPLES = 5


def with_head(body: Unwrapped, layer: Unwrapped, head: Path) -> Unwrapped:
    """The tensors of the model and those of its classifier, read from `head`. UserError: another layer."""
    if set(layer.state) != {"weight", "bias"} or layer.state["weight"].ndim != 2:
        raise UserError(
            f"{head} is no linear classifier: it holds {listing(layer.state, _NUM_EXAMPLES)}",
            "the weight and the bias of the layer behind the model's pooled output",
            "move it away, and the model beside it is read alone",
        )
    named = {f"classifier.{name}": tensor for name, tensor in layer.state.items()}
    return replace(body, state={**body.state, **named}, notes=(*body.notes, f"its classifier is {head.name}"))


def digest_of(*files: Path) -> str:
    """One sha256 for several files, over those of each."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
