"""The images of a run by their ids, wherever its data lie now. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.config.io import from_dict, validate_section
from warmstart.config.schema import DataConfig
from warmstart.data.decode import CorruptImage, to_channels
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.samples import Pixels, Samples, Source
from warmstart.data.sources import open_source
from warmstart.errors import UserError
from warmstart.run.reader import Run

_RGB = 3


@dataclass(frozen=True)
class Pictures:
    """Images, and masks where there are any, by id."""

    parts: tuple[Samples, ...]
    ignore: int | None = None  # the id of masks that is no class

    def places(self, ids: Sequence[str]) -> dict[str, tuple[Samples, int]]:
        """Where each of these lies; those that are gone are left out."""
        wanted = set(ids)
        return {
            name: (part, number)
            for part in self.parts
            for number, name in enumerate(part.ids)
            if name in wanted
        }


def open_pictures(run: Run, other: dict[str, Any] | None = None) -> Pictures:
    """Those of the run's own data, or of `other`: path, fingerprint, and how labels are read where not as in the run.

    Raises:
        UserError: they are not to be had, or other files lie there now.
    """
    settings, told = from_dict(run.config).data, run.resolved["data"]
    if other is not None:
        given = validate_section(DataConfig, other["labels"])
        labels = {name: getattr(given, name) for name in given.model_fields_set}
        settings, told = settings.model_copy(update={**labels, "group": None}), other
    source = _open(told["path"], settings)
    if other is not None and source.ignore is not None and not source.classes:
        classes = tuple(run.resolved["data"]["classes"])  # as they were measured, with the model's
        source = _open(told["path"], settings.model_copy(update={"mask_classes": classes}))
    if source.fingerprint != told["fingerprint"]:
        raise UserError(f"the data in {told['path']} have changed since", "the files that were measured")
    return Pictures(tuple(source.splits.values()), source.ignore)


def _open(path: str, settings: DataConfig) -> Source:
    return open_source(
        path,
        allow_single_class=True,
        group=settings.group,
        label_columns=settings.label_columns,
        masks=MaskSettings.of(settings),
    )


def read_rgb(pixels: Pixels, place: int) -> np.ndarray | None:
    """uint8 (H, W, 3); None for an image that cannot be read."""
    try:
        image = pixels.read(place)
    except CorruptImage:
        return None
    return to_channels(image[..., :_RGB] if image.shape[2] >= _RGB else image[..., :1], _RGB)
