"""The config.json of a Hugging Face folder says of a timm model what its weights do not: name, classes, preprocessing.

timm (`save_for_hf`) and transformers (`TimmWrapperForImageClassification.save_pretrained`) write the same keys.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from warmstart.errors import UserError, listing
from warmstart.models.sizes import first_line

CONFIG = "config.json"
_NUM_EXAMPLES = 3
# Only files of these names are what the config.json beside them speaks of.
_FILES = re.compile(r"(model|pytorch_model)\.(safetensors|bin|pth)(\.index\.json)?")
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers writes where nobody named the classes


def described(file: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """What stands beside `file`, with the keys and the text forms of a safetensors file's metadata; and notes.

    {} without a config.json, or where it is not of a timm model. UserError: one that is not JSON.
    """
    config_file = file.with_name(CONFIG)
    if not _FILES.fullmatch(file.name) or not config_file.is_file():
        return {}, ()
    config = read_config(config_file)
    if not isinstance(config.get("architecture"), str):
        return {}, ()
    image = config.get("pretrained_cfg")
    image = image if isinstance(image, dict) else {}
    names, notes = _numbered(_class_names(config))
    entries = {
        "arch": config["architecture"],
        "classes": names,
        "mean": image.get("mean"),
        "std": image.get("std"),
        "image_size": image.get("input_size"),
        "crop_pct": image.get("crop_pct"),
    }
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in entries.items()
        if value is not None
    }
    return texts, notes


def read_config(file: Path) -> dict[str, Any]:
    """{} where the file holds another value than a dict. UserError: not JSON."""
    return parse_config(file.read_bytes(), str(file))


def parse_config(content: bytes, source: str) -> dict[str, Any]:
    """As `read_config`, of what was read from `source`."""
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is not JSON: {first_line(error)}",
            "what timm or transformers wrote beside the weights",
            "download it again, or move the weights to a folder without it",
        ) from error
    return config if isinstance(config, dict) else {}


def classes_in_config(config: dict[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The classes that a config names, None if it names none; and notes."""
    names, notes = _numbered(_class_names(config))
    return (tuple(map(str, names)) if names else None), notes


def _numbered(names: Any) -> tuple[Any, tuple[str, ...]]:
    """Names that several classes share (ImageNet has two cranes) with a number: neither is taken for the other."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return names, ()  # `classes_in` refuses it
    counts = Counter(names)
    shared = [name for name in counts if counts[name] > 1]
    places: Counter[str] = Counter()
    unique = []
    for name in names:
        places[name] += 1
        unique.append(f"{name} ({places[name]})" if counts[name] > 1 else name)
    listed = listing(map(repr, shared), _NUM_EXAMPLES)
    return unique, (f"{CONFIG} names several classes {listed}: numbered",) if shared else ()


def _class_names(config: dict[str, Any]) -> Any:
    """`id2label` of transformers, `label_names` of timm; None where the classes have only numbers."""
    by_index = config.get("id2label")
    if isinstance(by_index, dict) and set(by_index) == {str(index) for index in range(len(by_index))}:
        names = [by_index[str(index)] for index in range(len(by_index))]
    else:
        names = config.get("label_names") or []
    return None if not names or all(_NAMELESS.fullmatch(str(name)) for name in names) else names
