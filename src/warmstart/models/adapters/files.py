"""Adapter folders in peft's file format: what a run has trained, without the model that it was trained on.

adapter_model.safetensors and adapter_config.json are peft's, so that peft loads them; warmstart.json says what those
two leave out: model, classes, preprocessing, and by hash of which base the adapter is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from warmstart.errors import UserError, listing
from warmstart.models.adapters.four_bit import facts_before, sha256_of, without_codes
from warmstart.models.adapters.inject import adapted_layer, without_adapters
from warmstart.models.hf_folder import read_config
from warmstart.records import Base, Lora

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "warmstart.json"
_FORMAT = 1
_PREFIX, _INSIDE = (
    "base_model.model.",
    ".base_layer.",
)  # of peft: before all names; where a layer has layers of its own
_KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
# Initialisations of peft that change the base, of which no file holds what is left.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder; `tensors` are the adapters' and those that replace the base's, under our names."""

    folder: Path
    tensors: dict[str, Tensor]
    lora: Lora
    replaced: tuple[str, ...]  # paths of modules whose tensors are all the adapter's own
    named: str | None  # the base, by peft's config
    base: Base | None = None  # by our manifest, which a folder of peft has not
    entries: Mapping[str, str] = field(
        default_factory=dict
    )  # of the model, as in the metadata of a file of ours


def identity(
    state: Mapping[str, Tensor], replaced: Collection[str], own: Collection[str] = frozenset()
) -> str:
    """sha256 over name, shape and bytes of every tensor of a base that its adapter leaves alone.

    `replaced` are paths of whole modules, `own` names of tensors; a weight in 4 bits counts as what it was before.
    """
    plain, _ = without_adapters(without_codes(state)[0])
    facts = {name: (tuple(tensor.shape), sha256_of(tensor).hex()) for name, tensor in plain.items()}
    facts |= facts_before(state)
    kept = [name for name in sorted(facts) if name not in own and not is_under(name, replaced)]
    return sha256("\n".join(f"{name} {facts[name]}" for name in kept).encode()).hexdigest()


def is_under(name: str, paths: Collection[str]) -> bool:
    """Whether a tensor belongs to one of the modules at `paths`."""
    return any(name.startswith(f"{path}.") for path in paths)


def whole_modules(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[str, ...]:
    """Paths of the modules all of whose tensors are among `own`, the outermost: what peft calls modules_to_save."""
    paths = sorted({name.rpartition(".")[0] for name in own} - {""})
    whole = [path for path in paths if all(name in own for name in state if is_under(name, (path,)))]
    return tuple(path for path in whole if not is_under(path, whole))


def adapter_files(
    state: Mapping[str, Tensor],
    own: Collection[str],
    lora: Lora,
    entries: Mapping[str, str],
    base: Base,
) -> dict[str, bytes]:
    """The files of an adapter folder, name -> content.

    `state` is of the whole model, on the CPU; `own` are the tensors beside the adapters that are not the base's.
    `entries` are those of a file of the model's weights (metadata.model_entries).
    """
    replaced = whole_modules(state, own)
    attentions = {path for path in lora.targets if f"{path}.in_proj_weight" in state}
    _, adapters = without_adapters(state)
    tensors = {_PREFIX + _peft_name(name, attentions): tensor for name, tensor in adapters.items()}
    tensors |= {_PREFIX + name: state[name] for name in own}
    base = replace(base, sha256=identity(state, replaced, own))
    config = {
        "base_model_name_or_path": base.path,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": list(replaced),
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": list(lora.targets),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    } | _KINDS[lora.kind]
    manifest = {"format": _FORMAT, "base": asdict(base), "lora": asdict(lora), "model": dict(entries)}
    return {
        WEIGHTS: save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}),
        CONFIG: _json(config),
        MANIFEST: _json(manifest),
    }


def with_entries(manifest: Path, entries: Mapping[str, str]) -> bytes:
    """The content of a manifest of ours, with more that is said of the model."""
    content = read_config(manifest)
    return _json({**content, "model": {**content["model"], **entries}})


def _peft_name(name: str, attentions: Collection[str]) -> str:
    """That of peft for a tensor of an adapter, without the prefix: an attention's own layers are inside of it."""
    parent, dot, last = str(adapted_layer(name)).rpartition(".")
    if parent in attentions:
        name = f"{parent}{_INSIDE}{last}{name.removeprefix(parent + dot + last)}"
    return re.sub(r"\.lora_magnitude$", ".lora_magnitude_vector", name)


def _our_name(name: str) -> str:
    """The reverse, with or without the adapter's name in it, as older versions of peft wrote it."""
    name = name.removeprefix(_PREFIX).replace(_INSIDE, ".")
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
    name = re.sub(r"\.lora_magnitude_vector(\..+)?$", ".lora_magnitude", name)
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


def read_adapter(file: Path, tensors: Mapping[str, Tensor]) -> Adapter | None:
    """The folder that a file of adapters, with these tensors, lies in; None for any other file of weights.

    Raises:
        UserError: an adapter of another kind than LoRA, or a damaged folder.
    """
    config_file, manifest_file = file.with_name(CONFIG), file.with_name(MANIFEST)
    if not file.name.startswith("adapter_model.") or not config_file.is_file():
        return None
    config = read_config(config_file)
    _check_config(config, config_file)
    named = {name: _our_name(name) for name in tensors if ".original_module." not in name}
    layers = {adapted_layer(ours): theirs for theirs, ours in named.items() if adapted_layer(ours)}
    strange = [theirs for theirs, ours in named.items() if ".lora_" in ours and not adapted_layer(ours)]
    if strange or not layers:
        raise UserError(
            f"{file} holds {listing(strange, 3) if strange else 'no low-rank matrices'}",
            "tensors lora_A and lora_B of linear layers, convolutions and attentions",
            "merge it where it was made: model.merge_and_unload(), and save the weights",
        )
    state = {ours: tensors[theirs] for theirs, ours in named.items()}
    kind = next((kind for kind, words in _KINDS.items() if words and words.items() <= config.items()), "lora")
    targets = tuple(str(path) for path, theirs in layers.items() if _INSIDE not in theirs)
    lora = Lora(kind, config["r"], float(config["lora_alpha"]), config.get("lora_dropout", 0.0), targets)
    own, ends = {name for name in state if adapted_layer(name) is None}, config.get("modules_to_save") or ()
    found = Adapter(
        folder=file.parent,
        tensors=state,
        lora=lora,
        # peft's modules_to_save are ends of paths.
        replaced=tuple(path for path in whole_modules(state, own) if path.endswith(tuple(ends))),
        named=config.get("base_model_name_or_path"),
    )
    if not manifest_file.is_file():
        return found
    manifest = read_config(manifest_file)
    try:
        base, entries = Base(**manifest["base"]), {str(key): str(v) for key, v in manifest["model"].items()}
        lora = Lora.from_json(manifest["lora"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{manifest_file} is damaged: {error}", "the file as it was written", "copy the folder again"
        ) from error
    return replace(found, base=base, entries=entries, lora=lora)


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for what would not be computed as peft computes it."""
    kind, init = config.get("peft_type"), str(config.get("init_lora_weights"))
    other = {
        key: config[key] for key in ("rank_pattern", "alpha_pattern", "target_parameters") if config.get(key)
    }
    other |= {key: True for key in ("fan_in_fan_out", "lora_bias") if config.get(key)}
    other |= {} if kind == "LORA" else {"peft_type": kind}
    other |= {"init_lora_weights": init} if init.lower().startswith(_CHANGES_BASE) else {}
    other |= {key: config.get(key) for key in ("r", "lora_alpha") if not _is_positive(config.get(key))}
    if other:
        raise UserError(
            f"{file} describes an adapter that is not read here: "
            + listing((f"{key} {value}" for key, value in other.items()), 5),
            "peft_type LORA, with one rank and one alpha for all layers, beside an unchanged base",
            "merge it where it was made: model.merge_and_unload(), and save the weights",
        )


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
