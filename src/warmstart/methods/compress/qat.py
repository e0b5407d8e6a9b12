"""Quantisation-aware training: layers that compute as int8 will, whose weights the recovery trains to it."""

from __future__ import annotations

import copy

from warmstart.errors import UserError, listing
from warmstart.methods.compress.ranges import find_grids, find_places
from warmstart.methods.compress.subject import Edited, Subject
from warmstart.models.quantised import SAFE_LEVELS
from warmstart.models.recipe import QUANTISED, apply
from warmstart.records import Edit, Recipe


def quantise_for_training(subject: Subject, amount: float) -> Edited:
    """All convolutions and linear layers on grids that calibration images fix; `amount` is of no meaning here.

    The head stays in floating point, so that other classes fit.

    Raises:
        UserError: no training images, or no layer that can be quantised.
    """
    built, module = subject.built, copy.deepcopy(subject.built.module)
    heads = [] if built.tasks is None else [head.path for head in built.tasks.heads]
    places = find_places(module, subject.example(2), [built.head, *heads])
    if not places.layers:
        raise UserError(
            f"{built.name} has no layer that can be quantised beside its head",
            "convolutions and linear layers that a forward pass calls once",
            "--method int8 quantises the operators of its ONNX graph",
        )
    grids = find_grids(module, places, subject.training_images())
    forms = {path: {"output": point, "levels": SAFE_LEVELS} for path, point in places.layers.items()}
    edit = Edit(QUANTISED, forms)
    apply(module, Recipe((edit,)))
    module.load_state_dict({**module.state_dict(), **grids})
    left = f"; in floating point: {listing(places.left, 4)}" if places.left else ""
    told = f"{len(forms)} layers compute with weights of 7 bits and numbers of 8 between them{left}"
    return Edited(module, (edit,), (told,))
