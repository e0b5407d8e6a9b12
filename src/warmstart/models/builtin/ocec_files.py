"""Which of document 001's models a file holds, by the names and shapes of its tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from warmstart.config.ocec import HEADS, MARGINS, OcecShape
from warmstart.records import Margin

MARGIN_HEAD = "margin_head"
# Key -> of records.Margin.
_VALUES = {
    "margin": "margin",
    "margin_scale": "scale",
    "margin_eval_scale": "eval_scale",
}


def shape_by(shapes: Mapping[str, tuple[int, ...]], margin_method: Any = None) -> OcecShape | None:
    """The model that tensors of these names and shapes are of; None where they are of another family.

    Of a token grid only the number of cells can be told; it is then the default one, or a single row.
    """
    stem, numbers = shapes.get("stem.0.weight"), _numbers(shapes)
    if stem is None or len(stem) != 4 or numbers != list(range(len(numbers))) or not numbers:
        return None
    variant = "baseline"
    if "features.0.block.0.weight" in shapes:
        variant = "inverted_se"
    elif "features.0.0.dwconv.weight" in shapes:
        variant = "convnext"
    told: dict[str, Any] = {"arch_variant": variant, "base_channels": stem[0], "num_blocks": len(numbers)}
    if variant == "inverted_se":
        told |= _inverted(shapes, stem[0])
    return OcecShape(**told, **_head_by(shapes), margin=margin_of(shapes, margin_method))


def margin_of(names: Iterable[str], method: Any) -> str:
    """The method that a file states of its margin head, cosface being that program's default; "" where it has none."""
    if f"{MARGIN_HEAD}.weight" not in names or method == "none":
        return ""
    return str(method) if method in MARGINS else "cosface"


def margin_to(margin: Margin | None) -> dict[str, Any]:
    """What a file's train_config says of a margin head: its method as that program does, its values as our flags."""
    if margin is None:
        return {"margin_method": "none"}
    return {"margin_method": margin.method} | {key: getattr(margin, field) for key, field in _VALUES.items()}


def margin_text(names: Iterable[str], settings: Mapping[Any, Any]) -> dict[str, str]:
    """The entry of our metadata for what `margin_to` wrote; {} where the values are not stated."""
    method = margin_of(names, settings.get("margin_method"))
    values = {field: settings.get(key) for key, field in _VALUES.items()}
    if not method or not all(isinstance(value, (int, float)) for value in values.values()):
        return {}
    return {MARGIN_HEAD: json.dumps({"method": method, **values})}


def _numbers(names: Iterable[str]) -> list[int]:
    found = {int(match[1]) for name in names if (match := re.match(r"features\.(\d+)\.", name))}
    return sorted(found)


def _inverted(shapes: Mapping[str, tuple[int, ...]], channels: int) -> dict[str, int]:
    expanded = "features.0.block.3.weight" in shapes and len(shapes["features.0.block.3.weight"]) == 4
    width = shapes["features.0.block.0.weight"][0]
    gate = shapes.get(f"features.0.block.{6 if expanded else 3}.fc.0.weight")
    return {"expansion": width // channels, "se_reduction": max(1, width // gate[0]) if gate else 0}


def _head_by(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if "head.mixer.layers.0.norm1.weight" in shapes:
        depth = len({name.split(".")[3] for name in shapes if name.startswith("head.mixer.layers.")})
        return {"head_variant": HEADS[2], "token_mixer_layers": depth}
    cells = shapes.get("head.mixer.0.token_fc2.weight")
    if cells is not None:
        depth = len({name.split(".")[2] for name in shapes if name.startswith("head.mixer.")})
        default = OcecShape().token_mixer_grid
        grid = default if cells[0] == default[0] * default[1] else (1, cells[0])
        return {"head_variant": HEADS[3], "token_mixer_layers": depth, "token_mixer_grid": grid}
    if "head.5.weight" in shapes or "head.4.weight" in shapes:
        return {"head_variant": HEADS[1], "undropped": "head.5.weight" not in shapes}
    return {"head_variant": HEADS[0]}
