"""The config.json of a Hugging Face folder says of a timm model what its weights do not: name, classes, preprocessing.

timm (`save_for_hf`) and transformers (`TimmWrapperForImageClassification.save_pretrained`) write the same keys.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from warmstart.errors import UserError
from warmstart.models.sizes import first_line

# Only files of these names are what the config.json beside them speaks of.
_FILES = re.compile(r"(model|pytorch_model)\.(safetensors|bin|pth)(\.index\.json)?")
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers writes where nobody named the classes


def described(file: Path) -> dict[str, str]:
    """What stands beside `file`, with the keys and the text forms of a safetensors file's metadata.

    {} without a config.json, or where it is not of a timm model. UserError: one that is not JSON.
    """
    config_file = file.with_name("config.json")
    if not _FILES.fullmatch(file.name) or not config_file.is_file():
        return {}
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{config_file} is not JSON: {first_line(error)}",
            "what timm or transformers wrote beside the weights",
            "download it again, or move the weights to a folder without it",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return {}
    image = config.get("pretrained_cfg")
    image = image if isinstance(image, dict) else {}
    entries = {
        "arch": config["architecture"],
        "classes": _class_names(config),
        "mean": image.get("mean"),
        "std": image.get("std"),
        "image_size": image.get("input_size"),
        "crop_pct": image.get("crop_pct"),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in entries.items()
        if value is not None
    }


def _class_names(config: dict[str, Any]) -> list[str] | None:
    """`id2label` of transformers, `label_names` of timm; None where the classes have only numbers."""
    by_index = config.get("id2label")
    if isinstance(by_index, dict) and set(by_index) == {str(index) for index in range(len(by_index))}:
        names = [by_index[str(index)] for index in range(len(by_index))]
    else:
        names = config.get("label_names") or []
    return None if not names or all(_NAMELESS.fullmatch(str(name)) for name in names) else names
