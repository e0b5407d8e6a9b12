"""Folders that timm and transformers load by themselves: a config.json, the weights, and for the latter a processor."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from warmstart.errors import UserError
from warmstart.inference.restore import Restored
from warmstart.methods.export.card import card_text
from warmstart.methods.export.lineage import licence_of
from warmstart.methods.export.onnx_file import quiet
from warmstart.models.build import BuiltModel
from warmstart.models.card_file import CARD
from warmstart.models.hf_folder import CONFIG
from warmstart.models.tensor_file import TensorFile
from warmstart.records import Preprocessing
from warmstart.run import writer

_WEIGHTS, _PROCESSOR, _README = "model.safetensors", "preprocessor_config.json", "README.md"
# What a pretrained_cfg says of where timm's own weights came from.
_ORIGIN = ("url", "hf_hub_id", "hf_hub_filename", "file", "state_dict", "tag", "origin_url", "label_offset")
# Test sizes that timm recommends, and grids that follow from the size: of other images than ours.
_OF_OTHER_SIZES = ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size", "pool_size")


def write_timm(restored: Restored, folder: Path) -> None:
    """For `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Raises:
        UserError: no model of timm, or one with a head that timm does not have.
    """
    built = restored.built
    _check(built, "timm", built.name.startswith("timm:"), "a model of timm")
    folder.mkdir()
    _write_common(restored, folder, "timm")
    writer.write_json(folder / CONFIG, _timm_config(restored))


def write_hf(restored: Restored, folder: Path) -> None:
    """For `AutoModelForImageClassification.from_pretrained(FOLDER)`, of masks AutoModelForSemanticSegmentation; of a
    model of timm as transformers' TimmWrapper.

    Raises:
        UserError: a model that transformers has no class for, or one whose input no image processor of it covers.
    """
    built = restored.built
    is_timm, module = built.name.startswith("timm:"), built.module
    what = "a model that transformers itself makes with its classifier, or one of timm"
    _check(built, "hf", is_timm or has_hf_class(built), what)
    processor = None if is_timm else _processor(prepared_by(restored))
    folder.mkdir()
    _write_common(restored, folder, "transformers")
    if is_timm:
        own = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
        writer.write_json(folder / CONFIG, {**_timm_config(restored), **own, **_kind(built)})
        return
    plain: Any = copy.deepcopy(module).to("cpu", torch.float32)
    plain.config.id2label = dict(enumerate(built.classes))
    plain.config.label2id = {name: number for number, name in enumerate(built.classes)}
    with quiet():
        plain.config.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    writer.write_json(folder / CONFIG, {**config, "architectures": [type(plain).__name__], **_kind(built)})
    writer.write_json(folder / _PROCESSOR, processor)


def has_hf_class(built: BuiltModel) -> bool:
    """Whether it is, with its classifier, a model that transformers makes."""
    return hasattr(built.module, "save_pretrained")


def _kind(built: BuiltModel) -> dict[str, str]:
    """By what pipelines of transformers know that outputs are questions of their own: they take the sigmoid then."""
    if built.segments:
        return {}
    return {"problem_type": f"{'multi' if built.multi_label else 'single'}_label_classification"}


def prepared_by(restored: Restored) -> Preprocessing:
    """What a library is told to do, which cannot tell images of the input's size from others: where all of the run's
    are of it, and are taken as they are, nothing is cut off of any."""
    image, run = restored.built.preprocessing, restored.reference.run
    data = {} if run is None else run.resolved["data"]
    is_native = bool(data) and restored.native and (data["heights"][0], data["widths"][0]) == image.image_size
    return replace(image, crop_pct=1.0) if is_native else image


def _check(built: BuiltModel, to: str, is_theirs: bool, expected: str) -> None:
    if not is_theirs:
        raise UserError(
            f"--to {to}: {built.name} is none of its models", expected, "--to onnx or --to torch-export"
        )
    if built.margin is not None:
        raise UserError(
            f"--to {to}: its classifier is a {built.margin.method} head, which {to} does not have",
            "a linear classifier",
            "--to onnx or --to torch-export",
        )


def _write_common(restored: Restored, folder: Path, library: str) -> None:
    """Weights, card, and the few lines that the hub reads."""
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in restored.built.module.state_dict().items()
    }
    writer.write_whole(folder / _WEIGHTS, TensorFile(state, {"format": "pt"}))
    writer.write_text(folder / CARD, card_text(restored, folder / _WEIGHTS))
    licence = licence_of(restored)
    stated = f"license: {licence}\n" if licence else ""
    task = "image-segmentation" if restored.built.segments else "image-classification"
    head = f"---\n{stated}library_name: {library}\npipeline_tag: {task}\n---\n"
    told = f"{restored.built.name}, exported by warmstart from {restored.label}; {CARD} says how images are prepared.\n"
    writer.write_text(folder / _README, head + told)


def _timm_config(restored: Restored) -> dict[str, Any]:
    """What timm's own `save_for_hf` writes: the architecture, its arguments, and how images are prepared."""
    built, image = restored.built, prepared_by(restored)
    module: Any = built.module
    channels = image.num_channels
    inherited = {
        key: value for key, value in module.pretrained_cfg.items() if key not in (*_ORIGIN, *_OF_OTHER_SIZES)
    }
    is_fixed = bool(inherited.get("fixed_input_size"))
    arguments: dict[str, Any] = {"img_size": list(image.image_size)} if is_fixed else {}
    arguments |= {} if channels == 3 else {"in_chans": channels}
    config = {
        **inherited,
        "input_size": [channels, *image.image_size],
        "mean": list(image.mean),
        "std": list(image.std),
        "crop_pct": _floored(image),
        "crop_mode": "squash" if image.stretch else "center",
        "interpolation": "bilinear",
        "num_classes": len(built.classes),
        "custom_load": False,
        "license": licence_of(restored),
    }
    return {
        "architecture": built.name.removeprefix("timm:").partition(".")[0],
        "num_classes": len(built.classes),
        "num_features": module.num_features,
        "label_names": list(built.classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {key: value for key, value in config.items() if value is not None},
    }


def _floored(image: Preprocessing) -> float:
    """The crop_pct with which timm, which rounds down, resizes to our size, which is rounded to the nearest."""
    size, resized = image.image_size[0], image.resize_size[0]
    is_same = math.floor(size / image.crop_pct) == resized
    return image.crop_pct if is_same else size / (resized + 0.25)


def _processor(image: Preprocessing) -> dict[str, Any]:
    """Settings of an image processor that resizes, crops and normalises as we do.

    Raises:
        UserError: a side of the input is longer than the other: that of transformers resizes the shortest edge only.
    """
    (height, width), resized = image.image_size, image.resize_size
    if not image.stretch and height != width:
        raise UserError(
            f"--to hf: an input of {height}x{width} that images are resized to cover",
            "a square one: no image processor of transformers covers another",
            "--to onnx or --to torch-export",
        )
    box, whole = {"height": height, "width": width}, {"height": resized[0], "width": resized[1]}
    crops = {"do_center_crop": True, "crop_size": box}
    is_cut = not image.stretch or resized != image.image_size
    return {
        "image_processor_type": "CLIPImageProcessor" if is_cut else "ViTImageProcessor",
        "do_resize": True,
        "resample": 2,  # bilinear
        "size": whole if image.stretch else {"shortest_edge": resized[0]},
        **(crops if is_cut else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "do_convert_rgb": image.num_channels == 3,
    }
