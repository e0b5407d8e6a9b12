"""Files of weights in: safetensors, and pickled state_dicts read without executing anything."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, closest, listing
from warmstart.models.builtin import recognise
from warmstart.models.metadata import arch_in, classes_in, expand, preprocessing_in
from warmstart.models.shards import INDEX_SUFFIX, check_shard, digest, shard_files
from warmstart.models.sizes import first_line
from warmstart.models.unwrap import SAVE_BARE, Unwrapped, harmless_classes, strip_prefixes, unwrap

_SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
_NUM_EXAMPLES = 5
_LFS_POINTER = b"version https://git-lfs"


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

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self.state)


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file (or the one file of weights in a folder) to CPU tensors; UserError says what is wrong with it."""
    file = _find_file(Path(path).expanduser())
    with file.open("rb") as stream:
        start = stream.read(64)
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if not start:
        raise UserError(f"{file} is empty (0 bytes)", "a file of weights", "copy or download it again")
    if start.startswith(_LFS_POINTER):
        raise UserError(
            f"{file} is a git-lfs pointer, not the weights", "the file it points to", "run git lfs pull"
        )
    metadata: dict[str, str] = {}
    if file.name.endswith(INDEX_SUFFIX):
        found, sha256 = _read_shards(file), digest(file)
    elif file.suffix == ".safetensors" or start[8:10] == b'{"':
        tensors, metadata = _read_safetensors(file)
        found = Unwrapped(*strip_prefixes(tensors))
    else:
        found = _read_pickle(file)
    return WeightsFile(
        path=file,
        state=found.state,
        classes=classes_in(metadata, str(file)) or found.classes,
        arch=arch_in(metadata) or found.arch or recognise(found.state, _shapes(found.state)),
        preprocessing=preprocessing_in(metadata, str(file)),
        sha256=sha256,
        notes=found.notes,
    )


def load_into(module: nn.Module, state: Mapping[str, Tensor], head: str, source: str) -> bool:
    """Copy `state` into `module`, in place; False if the classifier at path `head` was not in it.

    Everything else must match by name and shape, or a UserError counts and names what does not.
    """
    wanted = module.state_dict()
    head_keys = {key for key in wanted if key.startswith(f"{head}.")}
    has_head = bool(head_keys & set(state))
    # Files from before PyTorch 0.4.1 have no batch counters, which only matter without a momentum.
    missing = [k for k in wanted if k not in state and not k.endswith(".num_batches_tracked")]
    missing = [k for k in missing if has_head or k not in head_keys]
    unexpected = [k for k in state if k not in wanted]
    mismatched = [k for k in state if k in wanted and state[k].shape != wanted[k].shape]
    if missing or unexpected or mismatched:
        raise _mismatch(missing, unexpected, [(k, state[k], wanted[k]) for k in mismatched], state, source)
    module.load_state_dict(dict(state), strict=False)
    return has_head


def _mismatch(
    missing: list[str],
    unexpected: list[str],
    mismatched: list[tuple[str, Tensor, Tensor]],
    state: Mapping[str, Tensor],
    source: str,
) -> UserError:
    shapes = [
        f"{k} ({_shape(found)} in the file, {_shape(want)} in the model)" for k, found, want in mismatched
    ]
    parts = [
        ("missing from the file", missing),
        ("not in the model", unexpected),
        ("of another shape", shapes),
    ]
    counts = "; ".join(f"{len(keys)} {what}: {listing(keys, _NUM_EXAMPLES)}" for what, keys in parts if keys)
    known = recognise(state, _shapes(state))
    return UserError(
        f"{source} does not fit the model: {counts}",
        "every tensor of the backbone, by name and shape",
        f"the file looks like {known}: --model {known}"
        if known
        else "pass the --model the file was saved from",
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        indices = [p for p in path.iterdir() if p.name.endswith(INDEX_SUFFIX)]
        files = indices or sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES))
        if len(files) == 1:
            return files[0]
        if files:
            found = f"holds {len(files)} files of weights: {listing(p.name for p in files)}"
        else:
            inside = listing((p.name for p in sorted(path.iterdir())), _NUM_EXAMPLES)
            found = f"holds no weights ({inside or 'it is empty'})"
        raise UserError(
            f"the folder {path} {found}", f"a file ({', '.join(_SUFFIXES)})", "--weights FOLDER/FILE"
        )
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    near = closest(path.name, (p.name for p in parent.iterdir())) if parent == path.parent else ""
    where = f"In {parent}: {listing(sorted(p.name for p in parent.iterdir()), _NUM_EXAMPLES) or 'nothing'}."
    raise UserError(f"there is no file {path}", "a file of weights", f"{near} {where}".strip())


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
    state, notes = strip_prefixes(tensors)
    return Unwrapped(state, (f"put together from {len(files)} safetensors files", *notes))


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
        raise _unreadable(file, "a PyTorch checkpoint", error) from error
    return unwrap(content, file)


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    size = file.stat().st_size
    return UserError(
        f"{file} ({size:,} bytes) is not {kind}, or it is damaged: {type(error).__name__}: {first_line(error)}",
        "a whole .safetensors file, or a state_dict saved by torch.save",
        "copy or download it again and compare the size",
    )
