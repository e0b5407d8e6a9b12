"""Averages of the weights (EMA) that stand in a file beside them: some programs read these first."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from warmstart.methods.export.container import Place

_AVERAGE = re.compile(r"^ema|_ema$|^averaged?_model")
# What stands in front of a tensor's own name, in either of the two.
_WRAPPERS = {"module", "_orig_mod", "model", "backbone", "net", "timm_model", "shadow", "averaged_model"}


def averages(tensors: Mapping[Place, Tensor], places: Mapping[str, Place]) -> dict[Place, str]:
    """Place of an average -> the model's tensor that it is of: by its name behind wrappers, in the same file.

    timm's `state_dict_ema`, `model_ema`, Lightning's `ema.*` and `ema_model.*`, and the like.
    """
    own = {(place[0], _bare(place)): name for name, place in places.items() if not _is_average(place)}
    taken = set(places.values())
    return {
        place: own[key]
        for place in tensors
        if place not in taken and _is_average(place) and (key := (place[0], _bare(place))) in own
    }


def _parts(place: Place) -> list[str]:
    """Keys below the file, and the parts of the tensor's name."""
    return [*map(str, place[1:-1]), *str(place[-1]).split(".")]


def _is_average(place: Place) -> bool:
    return any(_AVERAGE.search(part) for part in _parts(place)[:-1])


def _bare(place: Place) -> str:
    parts = str(place[-1]).split(".")
    while len(parts) > 1 and (parts[0] in _WRAPPERS or _AVERAGE.search(parts[0])):
        parts = parts[1:]
    return ".".join(parts)
