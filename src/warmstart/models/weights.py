"""Files of weights in: safetensors, and pickled state_dicts read without executing anything."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.adapters.files import Adapter, read_adapter
from warmstart.models.adapters.four_bit import in_floats, told_of_codes, without_codes
from warmstart.models.adapters.inject import without_adapters
from warmstart.models.beside import digest_of, with_head
from warmstart.models.builtin import recognise
from warmstart.models.card_file import entries_beside
from warmstart.models.choose import check_path, head_beside
from warmstart.models.contents import check_numbers, is_program, look_at, not_finite, plain, unusable
from warmstart.models.created import shapes_of
from warmstart.models.find_file import find_file
from warmstart.models.gaps import compare, under
from warmstart.models.hf_folder import CONFIG, described
from warmstart.models.metadata import (
    HF_CONFIG,
    NAME,
    arch_in,
    base_in,
    classes_in,
    decision_in,
    expand,
    is_multi_label,
    lora_in,
    margin_in,
    native_in,
    preprocessing_in,
    recipe_in,
    tasks_in,
    thresholds_in,
)
from warmstart.models.mismatch import explain
from warmstart.models.shards import INDEX_SUFFIX, check_shard, digest, shard_files
from warmstart.models.sizes import first_line
from warmstart.models.unwrap import SAVE_BARE, Unwrapped, harmless_classes, strip_prefixes, unwrap
from warmstart.records import Base, Decision, Lora, Margin, Recipe, Tasks, Thresholds


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and what it says about itself. `preprocessing` holds only what the file states."""

    path: Path
    state: dict[str, Tensor]
    classes: tuple[str, ...] | None
    arch: str | None  # a name for zoo.split_name: as stated, else by the tensors
    preprocessing: dict[str, Any]  # any of mean, std, image_size, crop_pct
    sha256: str
    notes: tuple[str, ...] = ()  # what was unwrapped, stripped and ignored to get at the tensors
    multi_label: bool = False  # as stated
    prefixes: tuple[str, ...] = ()  # stripped from all names, from the outermost on
    classes_key: str | None = None  # of a wrapper dict, whose `classes` need not be of the classifier
    hf_config: str | None = None  # of a model of transformers that was saved here
    margin: Margin | None = None  # of its classifier; None: that is linear
    decision: Decision | None = None  # of a binary classifier
    thresholds: Thresholds | None = None  # of a multi-label one
    lora: Lora | None = None  # what the adapters are
    adapters: dict[str, Tensor] = field(default_factory=dict)  # beside `state`, which is the base's
    codes: dict[str, Tensor] = field(default_factory=dict)  # of what is in 4 bits; `state` has it in floats
    base: Base | None = None  # what the adapters were trained on
    adapter: Adapter | None = None  # the folder of adapters without their base, of which `state` has the head
    tasks: Tasks | None = None  # whose heads it holds; None: it is of one task
    recipe: Recipe | None = None  # what was made of the model `arch`
    native: bool = True  # images of the input's size are taken as they are
    is_ours: bool = False  # saved by warmstart, after the model had run at the image size that it states

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self.state)


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file (or the best one of a folder or a glob) to CPU tensors; UserError says what is wrong with it."""
    check_path(Path(path))
    choice = find_file(Path(path).expanduser())
    file = choice.path
    found, metadata, sha256 = _opened(file)
    adapter = read_adapter(file, found.state)
    if adapter is not None:
        found, metadata = replace(found, state=adapter.tensors), dict(adapter.entries)
    head = None if NAME in metadata else head_beside(file)
    if head is not None:
        found, sha256 = with_head(found, _read_pickle(head), head), digest_of(file, head)
    check_numbers(found.state, file)
    # A file of ours has the model's own names and values, whatever they look like.
    state, notes = (found.state, []) if NAME in metadata else plain(found.state)
    lora = lora_in(metadata, str(file)) if adapter is None else adapter.lora
    state, adapters = without_adapters(state) if lora is not None else (state, {})
    state, codes = without_codes(state) if NAME in metadata else (state, {})
    state, notes = {**state, **in_floats(codes)}, [*notes, *(told_of_codes(codes) if lora is None else ())]
    beside, told = described(file)
    beside, config = {k: v for k, v in beside.items() if k not in metadata}, str(file.with_name(CONFIG))
    named = classes_in(metadata, str(file)) or classes_in(beside, config)
    notes += told if "classes" in beside else ()
    stated = {**found.metadata, **metadata}
    return WeightsFile(
        path=file,
        state=state,
        classes=named or found.classes,
        arch=arch_in({**beside, **metadata})
        or found.arch
        or (f"hf:{file.parent}" if head is not None else recognise(state, _shapes(state))),
        preprocessing={**preprocessing_in(beside, config), **preprocessing_in(stated, str(file))},
        sha256=sha256,
        notes=(*choice.notes, *found.notes, *notes, *not_finite(state)),
        multi_label=is_multi_label(metadata),
        prefixes=found.prefixes,
        classes_key=None if named else found.classes_key,
        hf_config=metadata.get(HF_CONFIG),
        margin=margin_in(stated, str(file)),
        decision=decision_in(metadata, str(file)),
        thresholds=thresholds_in(metadata, str(file)),
        lora=lora,
        adapters=adapters,
        codes=codes,
        base=base_in(metadata, str(file)) if adapter is None else adapter.base,
        adapter=adapter,
        tasks=tasks_in(metadata, str(file)),
        recipe=recipe_in(metadata, str(file)),
        native=native_in(metadata, str(file)),
        is_ours=NAME in metadata,
    )


def _opened(file: Path) -> tuple[Unwrapped, dict[str, str], str]:
    """What a file of any form holds, the entries that describe it, and its sha256."""
    start, sha256 = look_at(file)
    metadata: dict[str, str] = {}
    if file.name.endswith(INDEX_SUFFIX):
        found, sha256 = _read_shards(file), digest(file)
        metadata = entries_beside(file, sha256)
    elif file.suffix == ".safetensors" or start[8:10] == b'{"':
        tensors, metadata = _read_safetensors(file)
        metadata |= {} if NAME in metadata else entries_beside(file, sha256)
        found = Unwrapped(tensors, ()) if NAME in metadata else _stripped(tensors)
    else:
        found, metadata = _read_pickle(file), entries_beside(file, sha256)
    return found, metadata, sha256


def _stripped(tensors: Mapping[str, Tensor], *notes: str) -> Unwrapped:
    state, told, prefixes = strip_prefixes(tensors)
    return Unwrapped(state, (*notes, *told), prefixes=prefixes)


@dataclass(frozen=True)
class Loaded:
    """Whether the file's classifier was loaded too, and what was left out or filled in."""

    has_head: bool
    notes: tuple[str, ...]


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], head: str, source: str, name: str | None = None
) -> Loaded:
    """Copy `state` into `module`, in place; the classifier at path `head` may be absent.

    Every parameter of the backbone must be there by name and shape. Beside them, only what is understood may
    be missing or extra: counters and tables that the model fills itself, and other heads. Anything else is a
    UserError with the cause, and so are whole numbers of the right shapes: they would load, and mean nothing.
    """
    wanted = shapes_of(module)
    gaps, notes = compare(_shapes(state), wanted, head)
    floats = [
        key for key, parameter in module.named_parameters() if key in state and parameter.is_floating_point()
    ]
    whole = [key for key in floats if not state[key].is_floating_point()]
    strange = {key: tensor for key, tensor in state.items() if key in whole or key not in wanted}
    if gaps or unusable(strange) is not None:
        raise explain(state, wanted, gaps, source, name)
    if whole:
        raise UserError(
            f"{source} does not fit {name or 'the model'}: {len(whole)} weights are whole numbers: {listing(whole, 3)}",
            "floating point numbers",
            "save the weights that the model computes with",
        )
    module.load_state_dict({key: tensor for key, tensor in state.items() if key in wanted}, strict=False)
    return Loaded(any(under(key, head) for key in state if key in wanted), tuple(notes))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
            return state, expand(opened.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(file, "a safetensors file", error) from error


def _read_shards(index: Path) -> Unwrapped:
    tensors: dict[str, Tensor] = {}
    files = shard_files(index)
    for file, names in files.items():
        state, _ = _read_safetensors(file)
        check_shard(index, file, names, state)
        tensors |= {name: state[name] for name in names}
    return _stripped(tensors, f"put together from {len(files)} safetensors files")


def _read_pickle(file: Path) -> Unwrapped:
    """A state_dict, bare or wrapped. `weights_only` refuses every class that could run code."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless_classes()):
            warnings.simplefilter("ignore", UserWarning)  # torch warns, then raises, about TorchScript
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:class|type) (\S+)", str(error))
        if refused is None:
            raise UserError(
                f"{file} is not a PyTorch checkpoint, or it is damaged, or a pickle of something else. "
                "It was refused, and nothing in it was executed",
                "a state_dict saved by torch.save, or a safetensors file",
                "copy or download it again and compare the size",
            ) from error
        raise UserError(
            f"{file} holds more than tensors: reading it would run code of {refused[1] or refused[2]}. "
            "It was refused, and nothing in it was executed",
            "a state_dict of tensors only, or a safetensors file",
            f"on the machine that trusts the file: {SAVE_BARE}, or safetensors.torch.save_file(...)",
        ) from error
    except Exception as error:  # a damaged archive raises RuntimeError, EOFError, KeyError, ...
        if "TorchScript" in str(error):
            raise UserError(
                f"{file} is a TorchScript program, not weights",
                "a state_dict or a safetensors file",
                "torch.save(torch.jit.load(file).state_dict(), 'weights.pt') on a machine that trusts it",
            ) from error
        if is_program(file):
            raise UserError(
                f"{file} is a program of torch.export, not weights",
                "a state_dict or a safetensors file",
                "what `warmstart export RUN --to onnx` or --to safetensors writes is read; or "
                "torch.save(torch.export.load(file).state_dict, 'weights.pt')",
            ) from error
        raise _unreadable(file, "a PyTorch checkpoint", error) from error
    return unwrap(content, file)


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    size = file.stat().st_size
    return UserError(
        f"{file} ({size:,} bytes) is not {kind}, or it is damaged: {type(error).__name__}: {first_line(error)}",
        "a whole .safetensors file, or a state_dict saved by torch.save",
        "copy or download it again and compare the size",
    )
