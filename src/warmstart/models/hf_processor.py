"""The image processor of Hugging Face transformers -> our record of how pixels are prepared.

Its settings lie in preprocessor_config.json, or since transformers 5, beside a tokenizer, in processor_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.models.hf_folder import parse_config
from warmstart.models.image_text.processor import processor_files
from warmstart.models.sizes import Size
from warmstart.records import Preprocessing

_PROCESSOR, _WITH_TOKENIZER = "preprocessor_config.json", "processor_config.json"
_NORMALISED = ("image_mean", "image_std")
_LARGE = 384  # pixels from which ConvNeXt's processor neither keeps the aspect ratio nor crops
# What is assumed without a processor: (whose, mean, std).
_IMAGENET = "ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OF_FAMILY = {
    "clip": ("CLIP's", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ("SigLIP's", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def preprocessing_of(
    bare: str, config: dict[str, Any], segments: bool, is_saved: bool
) -> tuple[Preprocessing, tuple[str, ...]]:
    """As the image processor in the folder has it, else assumed (and said, unless the file of a trained model
    states its own); and notes."""
    stated = {} if is_saved and not Path(bare).is_dir() else _stated(bare)
    notes: tuple[str, ...] = ()
    whose, *assumed = _OF_FAMILY.get(str(config.get("model_type")).partition("_")[0], _IMAGENET)
    if not stated and not is_saved:
        told = f"hf:{bare} has no {_PROCESSOR} and no image_processor in a {_WITH_TOKENIZER}"
        notes = (f"{told}: {whose} mean and std, unless --mean and --std say others",)
    if stated.get("do_reduce_labels") or stated.get("reduce_labels"):
        notes = ("its masks were numbered from 1, with 0 ignored: class 0 is number 1 there",)
    vision = config.get("vision_config") or config
    channels = int(vision.get("num_channels", 3))
    mean, std = (tuple(stated.get(key) or default) for key, default in zip(_NORMALISED, assumed, strict=True))
    if stated.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    if len(mean) != channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    resized = _size(stated.get("size") or vision.get("image_size") or (512 if segments else 224))
    if stated.get("do_center_crop") and stated.get("crop_size"):
        size = _size(stated["crop_size"])
        stretch = not segments and _stretches({"size": stated.get("size")}, resized)
        return Preprocessing(size, mean, std, min(1.0, size[0] / resized[0]), stretch), notes
    stretch = _stretches(stated, resized)
    crop_pct = 1.0 if stretch else float(stated.get("crop_pct") or 1.0)
    if stretch and segments:
        notes = (
            *notes,
            "its image processor stretches images to their size; here they keep their aspect ratio",
        )
    return Preprocessing(resized, mean, std, crop_pct, stretch and not segments), notes


def _stretches(stated: dict[str, Any], resized: Size) -> bool:
    """Whether a processor that does not crop resizes both sides of an image to their size."""
    size = stated.get("size")
    if size is None:
        return False
    if stated.get("crop_pct") is not None:  # ConvNeXt's
        return resized[0] >= _LARGE
    return not isinstance(size, dict) or "shortest_edge" not in size


def _stated(place: str) -> dict[str, Any]:
    """The image processor's settings, of a folder or a name of the hub; {} where there are none."""
    files = processor_files(place, (_PROCESSOR, _WITH_TOKENIZER))
    for name, content in files.items():
        settings = parse_config(content, f"{place}/{name}")
        found = settings if name == _PROCESSOR else settings.get("image_processor")
        if isinstance(found, dict) and found:
            return found
    return {}


def _size(value: Any) -> Size:
    """(height, width) of a number, a pair or a processor's dict."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value["height"], value["width"])
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)
