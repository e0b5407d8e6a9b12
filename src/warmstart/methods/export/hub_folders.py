"""Folders that timm and transformers load by themselves: a config.json, the weights, and for the latter a processor."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from warmstart.errors import UserError
from warmstart.inference.restore import Restored
from warmstart.methods.export.card import CARD, card_text
from warmstart.methods.export.lineage import licence_of
from warmstart.methods.export.onnx_file import quiet
from warmstart.models.build import BuiltModel
from warmstart.models.hf_folder import CONFIG
from warmstart.models.tensor_file import TensorFile
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
    writer.write_json(folder / CONFIG, _timm_config(built, licence_of(restored)))


def write_hf(restored: Restored, folder: Path) -> None:
    """For `AutoModelForImageClassification.from_pretrained(FOLDER)`, of masks AutoModelForSemanticSegmentation; of a
    model of timm as transformers' TimmWrapper.

    Raises:
        UserError: a model that transformers has no class for.
    """
    built = restored.built
    is_timm, module = built.name.startswith("timm:"), built.module
    has_class = hasattr(module, "save_pretrained")
    what = "a model that transformers itself makes with its classifier, or one of timm"
    _check(built, "hf", is_timm or has_class, what)
    folder.mkdir()
    _write_common(restored, folder, "transformers")
    if is_timm:
        own = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
        writer.write_json(folder / CONFIG, {**_timm_config(built, licence_of(restored)), **own})
        return
    plain: Any = copy.deepcopy(module).to("cpu", torch.float32)
    plain.config.id2label = dict(enumerate(built.classes))
    plain.config.label2id = {name: number for number, name in enumerate(built.classes)}
    with quiet():
        plain.config.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    writer.write_json(folder / CONFIG, {**config, "architectures": [type(plain).__name__]})
    writer.write_json(folder / _PROCESSOR, _processor(built))


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
    writer.write_text(folder / CARD, card_text(restored))
    licence = licence_of(restored)
    stated = f"license: {licence}\n" if licence else ""
    task = "image-segmentation" if restored.built.segments else "image-classification"
    head = f"---\n{stated}library_name: {library}\npipeline_tag: {task}\n---\n"
    told = f"{restored.built.name}, exported by warmstart from {restored.label}; {CARD} says how images are prepared.\n"
    writer.write_text(folder / _README, head + told)


def _timm_config(built: BuiltModel, licence: str | None) -> dict[str, Any]:
    """What timm's own `save_for_hf` writes: the architecture, its arguments, and how images are prepared."""
    module: Any = built.module
    image, channels = built.preprocessing, built.preprocessing.num_channels
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
        "crop_pct": 1.0 if image.stretch else image.crop_pct,
        "crop_mode": "squash" if image.stretch else "center",
        "interpolation": "bilinear",
        "num_classes": len(built.classes),
        "custom_load": False,
        "license": licence,
    }
    return {
        "architecture": built.name.removeprefix("timm:").partition(".")[0],
        "num_classes": len(built.classes),
        "num_features": module.num_features,
        "label_names": list(built.classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {key: value for key, value in config.items() if value is not None},
    }


def _processor(built: BuiltModel) -> dict[str, Any]:
    """Settings of an image processor that resizes, crops and normalises as we do."""
    image = built.preprocessing
    (height, width), resized = image.image_size, image.resize_size
    box = {"height": height, "width": width}
    crops = {"do_center_crop": True, "crop_size": box, "size": {"shortest_edge": min(resized)}}
    return {
        "image_processor_type": "CLIPImageProcessor" if not image.stretch else "ViTImageProcessor",
        "do_resize": True,
        "resample": 2,  # bilinear
        **({"size": box} if image.stretch else crops),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "do_convert_rgb": image.num_channels == 3,
    }
