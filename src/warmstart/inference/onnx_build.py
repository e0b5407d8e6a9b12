"""FILE.onnx as a model to evaluate and predict with: by what it says of itself, and what was given beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from warmstart.errors import UserError, listing
from warmstart.inference.onnx_model import OnnxFile, answering, open_onnx
from warmstart.models.build import BuiltModel
from warmstart.models.created import with_stated
from warmstart.models.heads import HeadChange
from warmstart.models.metadata import (
    LICENCE,
    arch_in,
    decision_in,
    is_multi_label,
    native_in,
    thresholds_in,
)
from warmstart.records import Preprocessing

_NUM_RGB = 3


def build_onnx(path: Path, overrides: Mapping[str, Any]) -> BuiltModel:
    """The model in the file, which computes on the CPU and cannot be trained: it has no blocks.

    Raises:
        UserError: no such file, or none of an image model; no image size, mean or std is stated or given; names,
            thresholds or a decision for another number of classes than it answers with.
    """
    file = open_onnx(path)
    preprocessing, source = _preprocessing(file, overrides, path), str(path)
    multi_label = is_multi_label(file.entries)
    module = answering(file, preprocessing.num_channels, preprocessing.image_size, source, multi_label)
    answer = module(torch.zeros(1, preprocessing.num_channels, *preprocessing.image_size))
    numbers = tuple(str(number) for number in range(answer.shape[1]))
    classes = file.classes or numbers
    decision, thresholds = decision_in(file.entries, source), thresholds_in(file.entries, source)
    stated = [
        len(classes),
        *([] if thresholds is None else [len(thresholds.values)]),
        *([] if decision is None else [2]),
    ]
    if set(stated) != {len(numbers)}:
        raise UserError(
            f"{path} answers with {len(numbers)} classes, and its metadata speak of {listing(map(str, stated))}",
            "one name, and one threshold, for each",
            "export it again with those of its own classes",
        )
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return BuiltModel(
        module=module,
        name=f"onnx:{arch_in(file.entries) or path.name}",
        blocks=(),
        head="",
        preprocessing=preprocessing,
        classes=classes,
        channels_last=False,
        licence=file.entries.get(LICENCE),
        head_change=HeadChange("kept", classes, (), "as in the file"),
        source={"kind": "onnx", "path": source, "sha256": sha256},
        names_known=file.classes is not None,
        notes=("it gives probabilities: the logits that have them are taken",)
        if module.gives_probabilities
        else (),
        multi_label=multi_label,
        segments=answer.ndim == 4,
        decision=decision,
        thresholds=thresholds,
        native=native_in(file.entries, source),
    )


def _preprocessing(file: OnnxFile, overrides: Mapping[str, Any], path: Path) -> Preprocessing:
    given = {**({} if file.size is None else {"image_size": file.size}), **file.stated}
    given |= {key: value for key, value in overrides.items() if value is not None}
    if missing := [key.replace("_", "-") for key in ("image_size", "mean", "std") if key not in given]:
        raise UserError(
            f"{path} does not state its {listing(missing)}",
            "the size of its images, and mean and std of their channels",
            " ".join(f"--{key} {'HxW' if key == 'image-size' else 'VALUE'}" for key in missing),
        )
    channels = file.num_channels or len(given["mean"])
    neutral = Preprocessing(given["image_size"], (0.0,) * channels, (1.0,) * channels)
    return with_stated(neutral, given, str(path))
