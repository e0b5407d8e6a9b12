"""The preprocessor_config.json of Hugging Face transformers -> our record of how pixels are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.models.hf_folder import read_config
from warmstart.models.sizes import Size
from warmstart.records import Preprocessing

_PROCESSOR = "preprocessor_config.json"
_NORMALISED = ("image_mean", "image_std")
_LARGE = 384  # pixels from which ConvNeXt's processor neither keeps the aspect ratio nor crops
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing_of(
    bare: str, config: dict[str, Any], segments: bool, is_saved: bool
) -> tuple[Preprocessing, tuple[str, ...]]:
    """As the image processor in the folder has it, else assumed (and said, unless the file of a trained model
    states its own); and notes."""
    file = Path(bare) / _PROCESSOR
    stated = read_config(file) if file.is_file() else {}
    notes: tuple[str, ...] = ()
    if not stated and not is_saved:
        notes = (
            f"hf:{bare} has no {_PROCESSOR}: ImageNet's mean and std, unless --mean and --std say others",
        )
    if stated.get("do_reduce_labels") or stated.get("reduce_labels"):
        notes = ("its masks were numbered from 1, with 0 ignored: class 0 is number 1 there",)
    vision = config.get("vision_config") or config
    channels = int(vision.get("num_channels", 3))
    mean, std = (
        tuple(stated.get(key) or default) for key, default in zip(_NORMALISED, _IMAGENET, strict=True)
    )
    if stated.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    if len(mean) != channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    resized = _size(stated.get("size") or vision.get("image_size") or (512 if segments else 224))
    if stated.get("do_center_crop") and stated.get("crop_size"):
        size = _size(stated["crop_size"])
        return Preprocessing(size, mean, std, min(1.0, size[0] / resized[0])), notes
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


def _size(value: Any) -> Size:
    """(height, width) of a number, a pair or a processor's dict."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value["height"], value["width"])
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)
