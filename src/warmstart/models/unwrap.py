"""What other tools write -> plain tensors by name: wrapper dicts, prefixes, EMA twins, class names."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from warmstart.config.ocec import shape_in
from warmstart.errors import UserError, listing
from warmstart.models.builtin.ocec_files import margin_of, margin_text

SAVE_BARE = "torch.save(model.state_dict(), 'weights.pt')"
_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "module")
_EMA = ("state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "timm_model.")
_CLASSES = ("classes", "class_names", "label_map", "class_to_idx", "idx_to_class")
# What a LightningModule keeps beside its model, by the first part of the name.
_NOT_THE_MODEL = re.compile(r"criterion|loss|metric|accuracy|acc$|^ema|_ema$|teacher")
_NUM_EXAMPLES = 5
_NUM_LEVELS = 3  # of dicts in dicts


@dataclass(frozen=True)
class Unwrapped:
    """The weights of a foreign file, what else it says of them, and what was done to get at them."""

    state: dict[str, Tensor]
    notes: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    arch: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # as safetensors' text entries
    prefixes: tuple[str, ...] = ()  # stripped, from the outermost on
    classes_key: str | None = None  # where the classes stand


def harmless_classes() -> list[Any]:
    """What torch may build beside tensors: values without behaviour. Paths become pure ones, of any system."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numpy = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSU"}]
    for function in (scalar, reconstruct):  # numpy 1 wrote another module's name
        name = getattr(function, "__name__", "")
        numpy += [(function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    pure = {"Posix": pathlib.PurePosixPath, "Windows": pathlib.PureWindowsPath}
    paths = [
        (kind, f"{module}.{prefix}{system}Path")
        for system, kind in pure.items()
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    ]
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    return [*numpy, *paths, *times, argparse.Namespace]


def unwrap(content: Any, file: pathlib.Path) -> Unwrapped:
    """Find the weights in what torch.load gave; UserError where there are none, or several."""
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}", "a state_dict {name: tensor}", SAVE_BARE)
    if not content:
        raise UserError(f"{file} holds an empty dict", "a state_dict {name: tensor}", SAVE_BARE)
    place, tensors, notes = _choose(content, file)
    is_lightning = "pytorch-lightning_version" in content
    state, stripped, prefixes = strip_prefixes(tensors, is_lightning)
    classes, key, told = _classes(content)
    # torch's own examples write `arch` too, but of torchvision: only timm also writes a version number.
    is_timm = isinstance(content.get("version"), int) and isinstance(content.get("arch"), str)
    arch = f"timm:{content['arch']}" if is_timm and place else _ocec(content, state)
    if arch is not None and not is_timm:
        told.insert(0, f"its model_config is {arch}")
    stated = _normalization(content)
    if stated:
        told.append(f"took {', '.join(stated)} under 'normalization'")
    settings = content.get("train_config")
    stated |= margin_text(state, settings) if isinstance(settings, Mapping) else {}
    return Unwrapped(state, (*notes, *stripped, *told), classes, arch, stated, prefixes, key)


def strip_prefixes(
    state: Mapping[str, Tensor], is_lightning: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Take off, repeatedly, a wrapper's prefix that all names carry. Returns the tensors, notes, and the prefixes.

    Of Lightning's files, what the model's names stand beside (losses, metrics, averages) is left out.
    """
    found = dict(state)
    notes: list[str] = []
    prefixes: list[str] = []
    if "n_averaged" in found and all(k.startswith("module.") for k in found if k != "n_averaged"):
        del found["n_averaged"]  # the counter of torch.optim.swa_utils.AveragedModel
        notes.append("left out the counter 'n_averaged' of averaged weights")
    while True:
        prefix, others = _common_prefix(found, is_lightning)
        if prefix is None:
            return found, tuple(notes), tuple(prefixes)
        inside = {key.removeprefix(prefix): found[key] for key in found if key not in others}
        if others:
            notes.append(
                f"left out {len(others)} tensors that are not the model's: {listing(others, _NUM_EXAMPLES)}"
            )
        notes.append(stripped_note(prefix, len(inside)))
        prefixes.append(prefix)
        found = inside


def stripped_note(prefix: str, num_names: int) -> str:
    return f"stripped the prefix {prefix!r} from {num_names} names"


def classes_note(num_classes: int, key: str) -> str:
    return f"took the {num_classes} class names under {key!r}"


def _common_prefix(state: Mapping[str, Tensor], is_lightning: bool) -> tuple[str | None, list[str]]:
    for prefix in _PREFIXES:
        others = [key for key in state if not key.startswith(prefix)]
        beside = is_lightning and all(_NOT_THE_MODEL.search(key.partition(".")[0]) for key in others)
        if len(others) < len(state) and (not others or beside):
            return prefix, others
    return None, []


def _choose(content: Mapping[Any, Any], file: pathlib.Path) -> tuple[str, dict[str, Tensor], list[str]]:
    """(key of the wrapper, or "" without one; its tensors; notes): plain weights before their average."""
    plain = {key: found for key in _PLAIN if (found := _find(content.get(key), key))[1]}
    averaged = {key: found for key in _EMA if (found := _find(content.get(key), key))[1]}
    if len(plain) > 1 or (not plain and len(averaged) > 1):
        keys = list(plain or averaged)
        raise UserError(
            f"{file} holds weights under {' and under '.join(map(repr, keys))}",
            "the weights of one model",
            f"save the ones you mean: torch.save(torch.load(file)[{keys[0]!r}], 'weights.pt')",
        )
    if not plain and not averaged:
        place, tensors, notes = "", _bare(content, file), []
    else:
        place, (path, tensors) = next(iter((plain or averaged).items()))
        twins = [at for at, _ in averaged.values()] if plain else []
        notes = _told(path, [*twins, *_twins_beside(content, path)])
    ignored = [str(key) for key in content if key not in tensors and key not in {place, *averaged, *_CLASSES}]
    if place and isinstance(content[place], Mapping):
        inner = content[place]
        ignored += [f"{place}.{key}" for key, value in inner.items() if _is_ignored(key, value, tensors)]
    if ignored:
        notes.append(f"ignored beside the weights: {listing(ignored, _NUM_EXAMPLES)}")
    return place, tensors, notes


def averaged_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The EMA twin of the weights, with its prefixes taken off; {} where there is none."""
    found = next((tensors for key in _EMA if (tensors := _find(content.get(key), key)[1])), {})
    return strip_prefixes(found)[0] if found else {}


def _is_ignored(key: Any, value: Any, tensors: Mapping[str, Tensor]) -> bool:
    return key not in tensors and not _find(value, "")[1]


def _told(path: str, twins: list[str]) -> list[str]:
    if set(path.split(".")) & {*_EMA}:
        return [f"took the EMA weights under {path!r}: the file has no others"]
    return [
        f"took the weights under {path!r}",
        *(f"their EMA twin under {at!r} was not taken" for at in twins),
    ]


def _twins_beside(content: Mapping[Any, Any], path: str) -> list[str]:
    """Places of averages below the top that `path` passes by."""
    places: list[tuple[str, dict[str, Tensor]]] = []
    above: list[str] = []
    for part in path.split("."):
        content, above = content[part], [*above, part]
        places += [_find(content.get(key), ".".join([*above, key])) for key in _EMA]
    return [at for at, tensors in places if tensors and not path.startswith(at)]


def _find(value: Any, place: str, levels: int = _NUM_LEVELS) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a state_dict, or of the one inside a wrapper that is wrapped itself, plain before averaged,
    and where it is (`model.ema`); {} if there are none."""
    if not isinstance(value, Mapping) or not levels:
        return place, {}
    direct = {key: v for key, v in value.items() if isinstance(v, Tensor) and isinstance(key, str)}
    for key in (*_PLAIN, *_EMA, "shadow"):
        found = _find(value.get(key), f"{place}.{key}", levels - 1)
        if found[1] and (key in _PLAIN or len(found[1]) > len(direct)):  # `decay` may be a tensor too
            return found
    return place, direct


def _bare(content: Mapping[Any, Any], file: pathlib.Path) -> dict[str, Tensor]:
    """A dict that is the state_dict itself; values that are no tensors and hold none may stand beside."""
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str)}
    others = {k: v for k, v in content.items() if k not in tensors}
    inner = next((k for k, v in others.items() if _all_tensors(v)), None)
    if tensors and inner is None:
        return tensors
    if inner is None and (optimizer := _optimizer_in(content)) is not None:
        raise UserError(
            f"{file} holds the state of an optimizer{optimizer} and no weights",
            f"a state_dict {{name: tensor}}, or one under {', '.join((*_PLAIN, *_EMA))}",
            f"pass the file that the weights were saved to beside it ({SAVE_BARE})",
        )
    kinds = listing((f"{key} ({type(value).__name__})" for key, value in others.items()), _NUM_EXAMPLES)
    raise UserError(
        f"{file} is not a bare state_dict: of its {len(content)} keys, {len(others)} hold no tensor: {kinds}",
        f"a state_dict {{name: tensor}}, or one under {', '.join((*_PLAIN, *_EMA))}",
        f"the weights seem to be under {inner!r}: torch.save(torch.load(file)[{inner!r}], 'weights.pt')"
        if inner is not None
        else SAVE_BARE,
    )


def _optimizer_in(content: Mapping[Any, Any]) -> str | None:
    """Where the state of an optimizer stands: "" at the top, ` under 'KEY'`, or None if there is none."""
    places = [("", content), *((f" under {key!r}", value) for key, value in content.items())]
    return next(
        (at for at, v in places if isinstance(v, Mapping) and {"state", "param_groups"} <= set(v)), None
    )


def _all_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _classes(content: Mapping[Any, Any]) -> tuple[tuple[str, ...] | None, str | None, list[str]]:
    """Class names that the file states, however many outputs it has, the key that they stand under; and notes."""
    settings = content.get("hyper_parameters")
    places = [content, settings] if isinstance(settings, Mapping) else [content]
    stated = [(key, place[key]) for place in places for key in _CLASSES if key in place]
    stated = [(key, value) for key, value in stated if isinstance(value, (Mapping, list, tuple)) and value]
    if not stated:
        return None, None, []
    key, value = stated[0]
    names = _names(value, key)
    if names is None:
        return None, None, [f"{key!r} is not one name per output, numbered from 0: ignored"]
    return names, key, [classes_note(len(names), key)]


def _ocec(content: Mapping[Any, Any], state: Mapping[str, Tensor]) -> str | None:
    """The model that document 001's program states: its entry model_config, and how a margin head was trained."""
    config, settings = (content.get(key) for key in ("model_config", "train_config"))
    shape = shape_in(config) if isinstance(config, Mapping) else None
    if shape is None:
        return None
    assert isinstance(config, Mapping)
    method = settings.get("margin_method") if isinstance(settings, Mapping) else config.get("margin_method")
    return f"builtin:{replace(shape, margin=margin_of(state, method)).name}"


def _normalization(content: Mapping[Any, Any]) -> dict[str, str]:
    """OCEC's entry {mean, std, image_size}, as text."""
    entry = content.get("normalization")
    if not isinstance(entry, Mapping):
        return {}
    return {
        key: json.dumps(np.asarray(entry[key]).tolist()) if key != "image_size" else _size_text(entry[key])
        for key in ("mean", "std", "image_size")
        if entry.get(key) is not None
    }


def _size_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(np.asarray(value).tolist())


def _names(value: Any, key: str) -> tuple[str, ...] | None:
    """Names in the order of outputs, from a list, {name: index} or {index: name}; None if it is none of these.

    Which of the two it is, the key tells; else text stands for names, as JSON makes text of every key.
    """
    if not isinstance(value, Mapping):
        return _ordered(list(enumerate(value)))
    by_value, by_key = [(_index(v), k) for k, v in value.items()], [(_index(k), v) for k, v in value.items()]
    is_first = key == "class_to_idx" or (
        key != "idx_to_class" and not any(isinstance(v, str) for v in value.values())
    )
    orders = (by_value, by_key) if is_first else (by_key, by_value)
    return next((names for pairs in orders if (names := _ordered(pairs)) is not None), None)


def _ordered(pairs: list[tuple[int | None, Any]]) -> tuple[str, ...] | None:
    by_index = dict(pairs)
    names = [by_index[index] for index in range(len(pairs)) if index in by_index]
    is_whole = len(names) == len(pairs) and all(isinstance(name, str) for name in names)
    return tuple(map(str, names)) if is_whole and len(set(names)) == len(names) else None


def _index(value: Any) -> int | None:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else None
