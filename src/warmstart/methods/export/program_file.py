"""A model as a program of torch.export: its graph and weights, which torch runs without the model's own code."""

from __future__ import annotations

from pathlib import Path

import torch

from warmstart.inference.restore import Restored
from warmstart.methods.export.card import card_text
from warmstart.methods.export.onnx_file import for_tracing, quiet, untraceable
from warmstart.models.card_file import CARD

_TRACED = 2  # images; one would be taken for a constant


def write_program(restored: Restored, path: Path) -> None:
    """Write FILE.pt2 for `torch.export.load`, for any number of images; the card is among its extra files.

    Raises:
        UserError: the model does what the tracer cannot follow.
    """
    module, images = for_tracing(restored.built, _TRACED)
    try:
        with quiet():
            program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # torch raises its own, and whatever the model's code raises on symbols
        raise untraceable(restored.built, "a program of torch.export", error) from error
    with quiet():
        torch.export.save(program, path, extra_files={CARD: card_text(restored)})
