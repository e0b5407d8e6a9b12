"""What an exported model needs beside its numbers, as one JSON text: for formats that have no place for all of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from warmstart import __version__
from warmstart.inference.restore import Restored
from warmstart.methods.export.lineage import licence_of
from warmstart.models.build import metadata_for
from warmstart.models.card_file import own_part
from warmstart.models.metadata import LICENCE, NATIVE, with_entries


def entries(restored: Restored) -> dict[str, str]:
    """What is known of the run, for the text entry of a file of ours: licence, and whether images of the input's size
    are taken as they are."""
    licence = licence_of(restored)
    return {NATIVE: json.dumps(restored.native), **({LICENCE: licence} if licence else {})}


def own_text(restored: Restored) -> dict[str, str]:
    """The text entry of a file of ours."""
    return with_entries(metadata_for(restored.built), entries(restored))


def card(restored: Restored, weights: Path | None = None, own_names: bool = True) -> dict[str, Any]:
    """Sizes are (height, width) in pixels; an image is resized to cover `resize_size` by OpenCV, smaller by the mean of
    areas and larger by its bilinear filter, or with `stretch` to exactly that by Pillow; its centre is taken, then
    (pixels / 255 - mean) / std. `weights` is the file that it stands beside, under the model's own names or others."""
    built = restored.built
    kind = "masks" if built.segments else "multi-label" if built.multi_label else "one class per image"
    return {
        "warmstart": __version__,
        "made_from": restored.label,
        "model": built.name,
        "task": kind,
        "classes": list(built.classes) if built.names_known else None,
        "outputs": "logits",
        "preprocessing": {
            **asdict(built.preprocessing),
            "resize_size": list(built.preprocessing.resize_size),
            "interpolation": "bilinear (Pillow)"
            if built.preprocessing.stretch
            else "area (OpenCV) where it shrinks, bilinear (OpenCV) where it grows",
            "takes_images_of_its_size_as_they_are": restored.native,
        },
        "decision": None if built.decision is None else asdict(built.decision),
        "thresholds": None if built.thresholds is None else list(built.thresholds.values),
        "licence": licence_of(restored),
        **({} if weights is None else own_part(weights, own_text(restored), own_names)),
    }


def card_text(restored: Restored, weights: Path | None = None, own_names: bool = True) -> str:
    return json.dumps(card(restored, weights, own_names), ensure_ascii=False, indent=1) + "\n"
