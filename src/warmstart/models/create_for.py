"""A model created so that a file of weights loads into it as it is, and moved to another image size afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from warmstart.config.schema import ModelConfig
from warmstart.models.created import Created, Outline, Wanted
from warmstart.models.fitting import image_size_in
from warmstart.models.image_text.prompts import ClassTexts
from warmstart.models.recipe import apply
from warmstart.models.sizes import resize
from warmstart.models.weights import WeightsFile
from warmstart.models.zoo import create, create_wanted, outline

_RGB = 3


def create_for(
    name: str,
    settings: ModelConfig,
    file: WeightsFile | None,
    outputs: tuple[int | None, ClassTexts | None],
    stated: Mapping[str, Any],
) -> Created:
    """Create with the outputs, input channels, image size and recipe that the file has, so that it loads as it is."""
    channels, image_size = None, stated.get("image_size")
    num_classes, texts = outputs
    if file is not None:
        known = outline(name, file.recipe)
        if known.fixed_size:  # as the file has it; build resizes it once loaded
            image_size = image_size_in(file.state, known) or file.preprocessing.get("image_size")
        head = file.state.get(f"{known.head}.weight")
        num_classes = head.shape[0] if head is not None and head.ndim else None
        channels = _channels(name, file, known, stated)
    elif name.startswith("timm:") and len(stated.get("mean") or ()) > 1:
        channels = len(stated["mean"])  # timm repeats or sums the stem's pretrained filters
    pretrained = settings.weights is None
    runs_there = file is not None and file.is_ours and file.preprocessing.get("image_size") == image_size
    wanted = Wanted(num_classes, settings.dropout, pretrained, channels, image_size, texts, runs_there)
    created = create_wanted(name, wanted)
    if file is not None and file.recipe is not None:
        apply(created.module, file.recipe, str(file.path))
    return created


def _channels(name: str, file: WeightsFile, known: Outline, stated: Mapping[str, Any]) -> int | None:
    """Input channels to build with (None: the model's own): the file's, unless three means are stated for a grey stem.

    One mean stands for every channel, so it says nothing. Only timm builds for any number of channels; the
    stem of a file is adapted to the others where that is well defined.
    """
    stem = file.state.get(f"{known.first_conv}.weight")
    if stem is None or stem.ndim != 4 or name.startswith("object:"):
        return None  # a stem of another rank is a mismatch, which load_into explains better
    own, found = (known.stem_shape or stem.shape)[1], int(stem.shape[1])
    if not name.startswith("timm:"):
        return None if {own, found} <= {1, _RGB} else found
    num_means = len(stated.get("mean") or ())
    return _RGB if found == 1 and num_means == _RGB else found


def resized(created: Created, file: WeightsFile, name: str, stated: Mapping[str, Any]) -> tuple[str, ...]:
    """Move a model with a fixed input from the file's image size to the one asked for; notes.

    UserError: it cannot be moved, or would not run there.
    """
    old = created.preprocessing.image_size
    new = stated.get("image_size", old)
    known = outline(name)
    if new != old:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            create(name, image_size=new)  # raises for a size that the architecture cannot run on
        resize(created.module, name, old, new)
        return (
            f"moved from images of {old[0]}x{old[1]} to {new[0]}x{new[1]}: position embeddings resampled",
        )
    if known.fixed_size and "image_size" not in stated and old != known.image_size:
        return (f"its position embeddings are for images of {old[0]}x{old[1]}: taken as the image size",)
    return ()
