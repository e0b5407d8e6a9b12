"""What the user says about columns of a table; and the one that holds index masks, or names their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from warmstart.data.columns import find_column
from warmstart.data.labels import Labels
from warmstart.data.mask_settings import Legend, MaskSettings
from warmstart.errors import UserError, closest, listing


class TableColumns(TypedDict):
    """What the user says about a table's columns."""

    group: str | None
    label_columns: Sequence[str]
    masks: MaskSettings
    captions: NotRequired[str | None]


def find_masks(
    title: str, columns: Sequence[str], masks: MaskSettings, label_columns: Sequence[str]
) -> str | None:
    """The column of masks: the one that `--masks` names, or one of COLUMNS where there are no labels.

    With labels beside it, it is used where any setting speaks of masks. Raises UserError for a name that is none.
    """
    if masks.place is None:
        has_labels = label_columns or find_column(columns, "label") is not None
        return None if has_labels and not masks.given else find_column(columns, "mask")
    found = find_column(columns, "mask", (masks.place.strip().lower(),))
    if found is None:
        raise UserError(
            f"--masks {masks.place}: {title} has no such column; its columns are {listing(columns, 30)}",
            "the column that names, or holds, the masks",
            closest(masks.place, columns),
        )
    return found


def no_labels(num: int, legend: Legend) -> Labels:
    """Of images with masks: which classes they hold is not known until the masks were read."""
    names = legend.names or ()
    return Labels(np.zeros((num, len(names)), dtype=np.uint8), names, legend.notes)
