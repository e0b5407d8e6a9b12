"""What a safetensors file says about itself: text to values and back. The one place that knows the keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from warmstart.errors import UserError
from warmstart.models.builtin import is_builtin
from warmstart.records import Base, Decision, Lora, Margin, Preprocessing, Recipe, Tasks, Thresholds

NAME = "warmstart.name"  # with its zoo, `timm:resnet18`; `arch` in files of others
_TASK, _MULTI_LABEL = "task", "multi-label"  # without the entry, an image has one class
_MARGIN, _DECISION, _THRESHOLDS, _LORA, _BASE = "margin_head", "decision", "thresholds", "lora", "base"
_TASKS, _RECIPE = "tasks", "recipe"
_KEYS = {
    Margin: _MARGIN,
    Decision: _DECISION,
    Thresholds: _THRESHOLDS,
    Lora: _LORA,
    Base: _BASE,
    Tasks: _TASKS,
    Recipe: _RECIPE,
}
_STRETCH = "stretch"  # without the entry, as the model's name says
HF_CONFIG = "hf_config"  # of a model of transformers, whose name is that of a folder
LICENCE = "licence"  # of the weights that a model was started from
NATIVE = "native"  # whether images of the input's size are taken as they are; without the entry, they are
_OURS = "warmstart"  # the one entry of a file of ours


def write_metadata(
    name: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    multi_label: bool = False,
    hf_config: str | None = None,
    records: Iterable[Margin | Decision | Thresholds | Lora | Base | Tasks | Recipe | None] = (),
) -> dict[str, str]:
    """The text entry that makes a saved model self-describing.

    One entry holds them all: safetensors writes several in random order, and then equal models would
    give files that differ.
    """
    height, width = preprocessing.image_size
    entries = {
        NAME: name,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "mean": json.dumps(list(preprocessing.mean)),
        "std": json.dumps(list(preprocessing.std)),
        "image_size": f"{height}x{width}",
        "crop_pct": json.dumps(preprocessing.crop_pct),
    } | ({_TASK: _MULTI_LABEL} if multi_label else {})
    entries |= {_STRETCH: json.dumps(True)} if preprocessing.stretch else {}
    entries |= {HF_CONFIG: hf_config} if hf_config else {}
    entries |= {
        _KEYS[type(record)]: json.dumps(asdict(record), ensure_ascii=False)
        for record in records
        if record is not None
    }
    return {_OURS: json.dumps(entries, ensure_ascii=False)}


def with_decision(metadata: Mapping[str, str], decision: Decision | None) -> dict[str, str]:
    """The text entry of a file of ours, with another decision or none."""
    entries = json.loads(metadata[_OURS])
    entries.pop(_DECISION, None)
    entries |= {} if decision is None else {_DECISION: json.dumps(asdict(decision), ensure_ascii=False)}
    return {_OURS: json.dumps(entries, ensure_ascii=False)}


def threshold_entry(thresholds: Thresholds) -> dict[str, str]:
    """The entry that says them."""
    return {_THRESHOLDS: json.dumps(asdict(thresholds))}


def with_thresholds(metadata: Mapping[str, str], thresholds: Thresholds) -> dict[str, str]:
    """The text entry of a file of ours, with these thresholds."""
    return with_entries(metadata, threshold_entry(thresholds))


def with_entries(metadata: Mapping[str, str], entries: Mapping[str, str]) -> dict[str, str]:
    """The text entry of a file of ours, with these beside its own."""
    return {_OURS: json.dumps({**json.loads(metadata[_OURS]), **entries}, ensure_ascii=False)}


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether a file of ours says this."""
    return _OURS in metadata


def model_entries(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file of ours says of its model, and not of the adapters beside it."""
    entries = json.loads(metadata[_OURS])
    return {key: value for key, value in entries.items() if key not in (_LORA, _BASE)}


def expand(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of a file, of ours or of others, one by one."""
    ours = _json(metadata.get(_OURS, ""))
    own = (
        {key: value for key, value in ours.items() if isinstance(value, str)}
        if isinstance(ours, dict)
        else {}
    )
    return {**{key: value for key, value in metadata.items() if key != _OURS}, **own}


def arch_in(metadata: Mapping[str, str]) -> str | None:
    """The model's name with its zoo; a bare `arch` is timm's word, unless it names a model of our own."""
    arch = metadata.get("arch")
    if arch and ":" not in arch and not is_builtin(arch):
        arch = f"timm:{arch}"
    return metadata.get(NAME) or arch


def classes_in(metadata: Mapping[str, str], source: str) -> tuple[str, ...] | None:
    if "classes" not in metadata:
        return None
    value = _json(metadata["classes"])
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise _bad("classes", metadata, source, 'a JSON list of names, ["cat", "dog"]')
    if len(set(value)) != len(value):
        raise _bad("classes", metadata, source, "a JSON list of names that all differ")
    return tuple(value)


def is_multi_label(metadata: Mapping[str, str]) -> bool:
    """Whether the outputs are questions of their own (sigmoid) instead of classes that exclude each other."""
    return metadata.get(_TASK) == _MULTI_LABEL


def native_in(metadata: Mapping[str, str], source: str) -> bool:
    """Whether images of exactly the input's size are taken as they are."""
    value = _json(metadata.get(NATIVE, "true"))
    if value not in (True, False):
        raise _bad(NATIVE, metadata, source, "true or false")
    return bool(value)


def margin_in(metadata: Mapping[str, str], source: str) -> Margin | None:
    """The margin head that the file's classifier is; None: it is linear."""
    if _MARGIN not in metadata:
        return None
    values = _json(metadata[_MARGIN])
    values = values if isinstance(values, dict) else {}
    numbers = [values.get(name) for name in ("margin", "scale", "eval_scale")]
    if values.get("method") not in ("cosface", "arcface") or not all(map(_is_number, numbers)):
        raise _bad(
            _MARGIN,
            metadata,
            source,
            '{"method": "cosface", "margin": 0.18, "scale": 12, "eval_scale": 6}',
        )
    margin, scale, eval_scale = (float(number or 0) for number in numbers)
    return Margin(values["method"], margin, scale, eval_scale)


def decision_in(metadata: Mapping[str, str], source: str) -> Decision | None:
    """The positive class and the threshold that the file's classifier answers with, where they are stated."""
    if _DECISION not in metadata:
        return None
    values = _json(metadata[_DECISION])
    threshold = values.get("threshold") if isinstance(values, dict) else "none"
    if not (threshold is None or _is_number(threshold)) or not isinstance(values.get("positive"), str):
        raise _bad(_DECISION, metadata, source, '{"positive": "open", "threshold": 0.4, "rule": "f1"}')
    return Decision(values["positive"], None if threshold is None else float(threshold), values.get("rule"))


def thresholds_in(metadata: Mapping[str, str], source: str) -> Thresholds | None:
    """The scores from which on the file's classifier gives its labels, where they are stated."""
    if _THRESHOLDS not in metadata:
        return None
    values = _json(metadata[_THRESHOLDS])
    found = values.get("values") if isinstance(values, dict) else None
    if not isinstance(found, list) or not all(map(_is_number, found)):
        raise _bad(_THRESHOLDS, metadata, source, '{"values": [0.4, 0.5]}, one for each label')
    return Thresholds(tuple(map(float, found)))


def read_decision(file: Path) -> Decision | None:
    """That of a safetensors file, without its tensors."""
    with safe_open(file, "pt") as opened:
        return decision_in(expand(opened.metadata() or {}), str(file))


def lora_in(metadata: Mapping[str, str], source: str) -> Lora | None:
    """The adapters that the file holds beside the base's tensors; None: it has none."""
    if _LORA not in metadata:
        return None
    values = _json(metadata[_LORA])
    try:
        return Lora.from_json(values)
    except (TypeError, KeyError):
        raise _bad(_LORA, metadata, source, "what `warmstart finetune --lora.rank` writes") from None


def base_in(metadata: Mapping[str, str], source: str) -> Base | None:
    """What the adapters in the file were trained on."""
    if _BASE not in metadata:
        return None
    try:
        return Base(**_json(metadata[_BASE]))
    except TypeError:
        raise _bad(_BASE, metadata, source, "what `warmstart finetune --lora.rank` writes") from None


def tasks_in(metadata: Mapping[str, str], source: str) -> Tasks | None:
    """The heads of several tasks that the file holds; None: it is of one."""
    if _TASKS not in metadata:
        return None
    try:
        return Tasks.from_json(_json(metadata[_TASKS]))
    except (TypeError, KeyError):
        raise _bad(_TASKS, metadata, source, "what `warmstart multitask` writes") from None


def recipe_in(metadata: Mapping[str, str], source: str) -> Recipe | None:
    """What was made of the model that the file names; None: it is that model."""
    if _RECIPE not in metadata:
        return None
    try:
        return Recipe.from_json(_json(metadata[_RECIPE]))
    except (AttributeError, TypeError, KeyError):
        raise _bad(_RECIPE, metadata, source, "what `warmstart compress` writes") from None


def preprocessing_in(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Those of mean, std (tuples), image_size (height, width in pixels), crop_pct and stretch that the file states."""
    stated: dict[str, Any] = {}
    for key in ("mean", "std"):
        if key in metadata:
            value = _json(metadata[key])
            if not isinstance(value, list) or not value or not all(_is_number(v) for v in value):
                raise _bad(key, metadata, source, "a JSON list of numbers, one per channel")
            stated[key] = tuple(float(v) for v in value)
    if "image_size" in metadata:
        value = _json(metadata["image_size"].replace("x", ",").join("[]"))
        value = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
        sides = value[-2:] if isinstance(value, list) else []
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise _bad("image_size", metadata, source, "pixels: 64, 64x64 or [64, 64]")
        stated["image_size"] = (sides[0], sides[-1])
    if "crop_pct" in metadata:
        value = _json(metadata["crop_pct"])
        if not _is_number(value) or not 0 < value <= 1:
            raise _bad("crop_pct", metadata, source, "a number in (0, 1]")
        stated["crop_pct"] = float(value)
    if _STRETCH in metadata:
        if _json(metadata[_STRETCH]) not in (True, False):
            raise _bad(_STRETCH, metadata, source, "true or false")
        stated[_STRETCH] = _json(metadata[_STRETCH])
    return stated


def _json(text: str) -> Any:
    """The value, or None where the text is not JSON; the callers check types and raise."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # brackets or digits without end
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(key: str, metadata: Mapping[str, str], source: str, expected: str) -> UserError:
    return UserError(
        f"the metadata of {source} has {key} = {metadata[key][:80]!r}",
        expected,
        "save the file again with this entry mended or left out",
    )
