"""The images of a run by their ids, wherever its data lie now. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warmstart.config.io import from_dict
from warmstart.data.decode import CorruptImage, to_channels
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.samples import Pixels, Samples
from warmstart.data.sources import open_source
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


def open_pictures(run: Run) -> Pictures:
    """Those of the run's own data. UserError where they are not to be had."""
    settings = from_dict(run.config).data
    source = open_source(
        run.resolved["data"]["path"],
        allow_single_class=True,
        group=settings.group,
        label_columns=settings.label_columns,
        masks=MaskSettings.of(settings),
    )
    return Pictures(tuple(source.splits.values()), source.ignore)


def read_rgb(pixels: Pixels, place: int) -> np.ndarray | None:
    """uint8 (H, W, 3); None for an image that cannot be read."""
    try:
        image = pixels.read(place)
    except CorruptImage:
        return None
    return to_channels(image[..., :_RGB] if image.shape[2] >= _RGB else image[..., :1], _RGB)
