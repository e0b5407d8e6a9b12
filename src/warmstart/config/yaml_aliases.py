"""The keys of the founding documents' YAML files (002 and 004): what each becomes here, or why it means nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.config.schema import leaves
from warmstart.errors import UserError, closest, listing


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Key:
    """`path` is the setting here (None: there is none, and `why` says so).

    `becomes(value)` is the value here, and raises ValueError (what is expected) for one that has no meaning.
    """

    path: str | None
    why: str = ""
    becomes: Callable[[Any], Any] = _same


def _steps(value: Any) -> str:
    return f"{value}steps"


def _share(value: Any) -> str:
    if not 0 <= _number(value) < 1:
        raise ValueError("a share of the run, from 0 to below 1")
    return str(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def _only(allowed: Any, expected: str) -> Callable[[Any], Any]:
    """Nothing but this value, which is what happens anyway."""

    def becomes(value: Any) -> Any:
        if value != allowed or isinstance(value, bool):
            raise ValueError(expected)
        return value

    return becomes


def _one_of(words: Mapping[Any, str]) -> Callable[[Any], str]:
    def becomes(value: Any) -> str:
        for word, ours in words.items():
            if value == word and isinstance(value, type(word)):
                return ours
        raise ValueError(listing(str(word).lower() for word in words))

    return becomes


def _device(value: Any) -> Any:
    return "auto" if value == "cuda" else value


def _model(value: Any) -> Any:
    """A name of the hub: OWNER/NAME, without the zoo that ours bear."""
    is_of_hub = isinstance(value, str) and re.fullmatch(r"[\w-]+/[\w.-]+", value, re.ASCII)
    return f"hf:{value}" if is_of_hub else value


def _stages(value: Any) -> str:
    """`[{epoch: 0, layers: [classifier]}, {epoch: 6, layers: [all]}]` -> `0:head,6:all`."""
    form = "a list of {epoch: 2, layers: [vision_model.encoder.layers.11]}"
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(form)
    entries = []
    for entry in value:
        layers = entry.get("layers")
        if entry.keys() != {"epoch", "layers"} or not isinstance(layers, list) or not layers:
            raise ValueError(form)
        entries += [f"{entry['epoch']}:{_block(str(layer))}" for layer in layers]
    return ",".join(entries)


def _block(layer: str) -> str:
    """Our pattern for a prefix of parameter names. A number is a whole one: layers.1 is not layers.10."""
    if layer.partition(".")[0] == "classifier":
        return "head"
    return layer if layer == "all" or layer[-1:].isdigit() else f"{layer}*"


_IN_RUN = "TensorBoard's events are in RUN/tb: `tensorboard --logdir` finds them below any folder"
# A switch turns the keys beside it on or off; the one named here is what it cannot do without.
SWITCHES = {
    "training.early_stopping.enabled": "patience",
    "training.layerwise_lr.enabled": "decay_rate",
    "training.progressive_unfreezing.enabled": "unfreeze_schedule",
}
YAML_KEYS: dict[str, Key] = {
    "experiment.name": Key("output.name"),
    "experiment.description": Key(None, "a run has a name and no other description"),
    "training.epochs": Key("train.epochs"),
    "training.num_epochs": Key("train.epochs"),
    "training.batch_size": Key("data.batch_size"),
    "training.learning_rate": Key("optim.lr"),
    "training.base_learning_rate": Key("optim.lr"),
    "training.weight_decay": Key("optim.weight_decay"),
    "training.early_stopping_patience": Key("train.patience", "null: no early stopping"),
    "training.warmup_epochs": Key("optim.warmup"),
    "training.warmup_ratio": Key("optim.warmup", "a share of the run", _share),
    "training.gradient_accumulation_steps": Key("optim.accumulate"),
    "training.max_grad_norm": Key("optim.clip"),
    "training.min_lr": Key("optim.min_lr"),
    "training.seed": Key("train.seed"),
    "training.lr_scheduler.type": Key(
        "optim.scheduler", "", _one_of({"cosine": "cosine", "linear": "linear", "constant": "none"})
    ),
    "training.lr_scheduler.num_cycles": Key(
        None,
        "half a cosine down to the floor is the only one there is",
        _only(0.5, "0.5, half a cosine: there is no other"),
    ),
    "training.early_stopping.patience": Key("train.patience"),
    "training.early_stopping.min_delta": Key("train.min_delta"),
    "training.layerwise_lr.decay_rate": Key(
        "adapt.layer_decay", "the head is the last layer: the block below it has the rate x the decay"
    ),
    "training.progressive_unfreezing.unfreeze_schedule": Key("adapt.unfreeze", "", _stages),
    "loss.dice_weight": Key("task.dice_weight"),
    "model.name": Key("model.name", "OWNER/NAME is a name of the hub: hf:OWNER/NAME", _model),
    "model.cache_dir": Key(None, "the variable HF_HOME names the folder of downloads"),
    "data.data_dir": Key("data.path"),
    "data.num_workers": Key("data.workers"),
    "data.pin_memory": Key(None, "images go to the device as bytes, from ordinary memory"),
    "evaluation.eval_steps": Key("train.eval_every", "", _steps),
    "evaluation.save_steps": Key("train.save_every", "", _steps),
    "evaluation.logging_steps": Key("train.log_every", "", _steps),
    "output.save_total_limit": Key("train.keep_checkpoints", "the best one is kept besides"),
    "output.log_dir": Key(None, _IN_RUN),
    "hardware.device": Key("train.device", "cuda: where there is one, as the document's program", _device),
    "hardware.mixed_precision": Key(
        "train.precision",
        "half precision where the device has it, else float32 with a warning",
        _one_of({True: "auto", False: "float32"}),
    ),
    "lora.r": Key("lora.rank"),
    "lora.lora_alpha": Key("lora.alpha"),
    "lora.target_modules": Key("lora.targets"),
    "lora.lora_dropout": Key("lora.dropout"),
    "lora.bias": Key(
        None, "biases stay as they are", _only("none", "none: biases of the base stay as they are")
    ),
    "seed": Key("train.seed"),
}
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in YAML_KEYS))
_GROUPS = {key.rpartition(".")[0] for key in YAML_KEYS} - {""}


@dataclass
class _Translation:
    """What a file became so far: ours by section, values by path here, notes, and what is wrong."""

    origin: str
    problems: list[UserError]
    rest: dict[str, Any]
    values: dict[str, Any]
    notes: list[str]

    def refuse(self, happened: str, expected: str = "", fix: str = "") -> None:
        self.problems.append(UserError(f"{self.origin}: {happened}", expected, fix))


def translate_yaml(
    content: Mapping[str, Any], origin: str, problems: list[UserError]
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """(what is not a document's, values of the others by path here, a note for each of those keys).

    A section that bears the name of one of ours is read key by key.
    """
    own = {(leaf.section, leaf.name) for leaf in leaves()}
    sections = {section for section, _ in own}
    result = _Translation(origin, problems, dict(content), {}, [])
    for section in _SECTIONS:
        body = content.get(section)
        if section in YAML_KEYS:
            if section in content:
                del result.rest[section]
                _put(result, section, body)
        elif section not in sections:
            result.rest.pop(section, None)
            if body is not None and not isinstance(body, dict):
                result.refuse(f"{section} is {body!r}", f"keys below {section}:")
            elif body:
                _read(result, section, body)
        elif isinstance(body, dict):
            documents = {
                key: value for key, value in body.items() if _is_documents(f"{section}.{key}", value, own)
            }
            result.rest[section] = {key: value for key, value in body.items() if key not in documents}
            _read(result, section, documents)
    return result.rest, result.values, tuple(result.notes)


def _is_documents(key: str, value: Any, own: set[tuple[str, str]]) -> bool:
    """Whether a key in a section of ours is a document's; `model.name` is both, and tells by its value."""
    section, _, name = key.partition(".")
    return key in YAML_KEYS and ((section, name) not in own or YAML_KEYS[key].becomes(value) != value)


def _read(result: _Translation, section: str, body: Mapping[str, Any]) -> None:
    for key, value, is_off in _opened(result, section, body):
        if key in SWITCHES:
            _switch(result, key, value, body)
        elif key not in YAML_KEYS:
            group = key.rpartition(".")[0]
            names = [name for known in (*YAML_KEYS, *SWITCHES) if (name := _below(group, known))]
            hint = closest(_below(group, key), names)
            result.refuse(f"unknown key {key!r}", f"in {group}: {listing(dict.fromkeys(names), 20)}", hint)
        elif is_off:
            result.notes.append(f"{key} has no effect here: {key.rpartition('.')[0]} is not enabled")
        else:
            _put(result, key, value)


def _switch(result: _Translation, key: str, value: object, body: Mapping[str, Any]) -> None:
    """The note on a switch; one that would switch nothing on is refused."""
    group, needed = key.rpartition(".")[0], SWITCHES[key]
    if value is not True or body[group.rpartition(".")[2]].get(needed) is not None:
        result.notes.append(f"{key} switches {'on' if value else 'off'} what stands beside it")
    else:
        result.refuse(
            f"{key} is true, and no {needed} stands beside it: nothing would be switched on",
            f"{group}.{needed}",
            f"give it, or leave {group} out",
        )


def _below(group: str, key: str) -> str:
    """What a key is called in a group; empty where it is in none of its."""
    return key.removeprefix(f"{group}.").partition(".")[0] if key.startswith(f"{group}.") else ""


def _opened(result: _Translation, group: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """(key, value, whether a switch beside it is off) of all keys, those of groups within included."""
    switch = body.get("enabled", True) if f"{group}.enabled" in SWITCHES else True
    if not isinstance(switch, bool):
        result.refuse(f"{group}.enabled is {switch!r}", "true or false")
    for name, value in body.items():
        key = f"{group}.{name}"
        if key not in _GROUPS:
            yield key, value, switch is False
        elif isinstance(value, dict):
            yield from _opened(result, key, value)
        elif value is not None:
            result.refuse(f"{key} is {value!r}", f"keys below {key}:")


def _put(result: _Translation, key: str, value: Any) -> None:
    """The value of a key that is in the table, and the note that says what it became."""
    known = YAML_KEYS[key]
    try:
        found = value if value is None else known.becomes(value)
    except ValueError as error:
        result.refuse(f"{key} is {value!r}", str(error))
        return
    why = f" ({known.why})" if known.why else ""
    if known.path is None:
        result.notes.append(f"{key} has no effect here: {known.why}")
        return
    if known.path in result.values:
        result.refuse(f"{key}: {known.path} is given twice by names of the documents")
    result.values[known.path] = found
    became = (
        f"{key} is {known.path}" if found == value else f"{key} {_written(value)} is {known.path} {found}"
    )
    result.notes.append(became + why)


def _written(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "..." if isinstance(value, list) else text
