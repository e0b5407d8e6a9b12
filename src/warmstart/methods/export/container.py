"""A file of weights as its author wrote it: tensors by where they stand in it, and everything else as it is.

A place is a tuple of keys: ("model.safetensors", "fc.weight") in safetensors files, ("checkpoint.pt", "state_dict",
"module.fc.weight") in a pickle.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from warmstart.models.shards import INDEX_SUFFIX, shard_files
from warmstart.models.tensor_file import TensorFile
from warmstart.models.unwrap import harmless_classes
from warmstart.run import writer

Place = tuple[Any, ...]
_SETTINGS, _CLASSES = "hyper_parameters", "classes"
_ZIP = b"PK"  # how a file of torch.save begins, since torch 1.6


@dataclass(frozen=True)
class Container:
    """`content` is what each file holds, by its name; `texts` are the entries of safetensors files, by theirs, and
    `index` is that of several. `is_old` are pickles of torch before 1.6."""

    content: dict[str, Any]
    texts: dict[str, dict[str, str] | None]
    index: str | None = None
    is_old: bool = False

    @property
    def tensors(self) -> dict[Place, Tensor]:
        return dict(_walk(self.content, ()))

    def with_tensors(self, tensors: Mapping[Place, Tensor]) -> Container:
        """The same with these in the places of its own, or beside them; it shares all else."""
        content: dict[str, Any] = self.content
        for place, tensor in tensors.items():
            content = _put(content, place, tensor)
        return replace(self, content=content)


def read_container(path: Path) -> Container:
    """The file at `path`, or the files that its index names; read before by `read_weights`, which finds it sound."""
    if path.name.endswith(INDEX_SUFFIX):
        files = {file.name: _read_safetensors(file) for file in shard_files(path)}
        tensors = {name: found for name, (found, _) in files.items()}
        return Container(tensors, {name: text for name, (_, text) in files.items()}, path.name)
    with path.open("rb") as stream:
        start = stream.read(16)
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        found, text = _read_safetensors(path)
        return Container({path.name: found}, {path.name: text})
    with torch.serialization.safe_globals(harmless_classes()):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return Container({path.name: content}, {}, is_old=not start.startswith(_ZIP))


def write_container(container: Container, path: Path, source: Path) -> None:
    """Write it as `path`; of several files, which keep their names, that is the folder. `source` has their index."""
    if container.index is None:
        (content,) = container.content.values()
        if container.texts:
            (text,) = container.texts.values()
            writer.write_whole(path, TensorFile(content, text))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=not container.is_old)
        return
    path.mkdir()
    for name, tensors in container.content.items():
        writer.write_whole(path / name, TensorFile(tensors, container.texts[name]))
    index = json.loads(source.read_text(encoding="utf-8"))
    index["weight_map"] = {key: name for name, tensors in container.content.items() for key in tensors}
    if "total_size" in index.get("metadata", {}):
        index["metadata"]["total_size"] = sum(tensor.nbytes for tensor in container.tensors.values())
    writer.write_json(path / container.index, index)


def digests(container: Container) -> dict[Place, str]:
    """sha256 of type, shape and numbers of each tensor."""
    found = {}
    for place, tensor in container.tensors.items():
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        numbers = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        found[place] = hashlib.sha256(head + numbers).hexdigest()
    return found


def with_classes(
    container: Container, classes: Sequence[str], entry: str | None, own: Mapping[str, str]
) -> Container | None:
    """The same where it names classes, naming these; None: it names none.

    `entry` is where a pickle does, at the top or among a Lightning module's settings; `own` is the text entry of a
    file of ours, which says more than classes.
    """
    if entry is not None:
        ((name, whole),) = container.content.items()
        inside = entry in whole
        names = copy.copy(whole if inside else whole[_SETTINGS])
        names[entry] = _as_before(names[entry], classes)
        changed = copy.copy(whole)
        changed.update(names if inside else {_SETTINGS: names})
        return replace(container, content={name: changed})
    texts = dict(container.texts)
    for name, text in container.texts.items():
        if text is not None and own.keys() <= text.keys():
            texts[name] = {**text, **own}
        elif text is not None and _CLASSES in text:
            texts[name] = {**text, _CLASSES: json.dumps(list(classes))}
    return replace(container, texts=texts) if texts != container.texts else None


def _as_before(value: Any, classes: Sequence[str]) -> Any:
    """The classes as a list, by their numbers or their numbers by them: as `value` has them."""
    if not isinstance(value, Mapping):
        return type(value)(classes)
    if all(isinstance(number, int) for number in value.values()):
        return {name: number for number, name in enumerate(classes)}
    kind = type(next(iter(value)))
    return {kind(number): name for number, name in enumerate(classes)}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    with safe_open(file, framework="pt", device="cpu") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118


def _walk(value: Any, place: Place) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*place, key))


def _put(value: Any, place: Place, tensor: Tensor) -> Any:
    """A copy of a mapping in mappings, of its own kind and with its own attributes, with `tensor` at `place`."""
    if not place:
        return nn.Parameter(tensor, value.requires_grad) if isinstance(value, nn.Parameter) else tensor
    made, (key, *rest) = copy.copy(value), place
    made[key] = _put(value.get(key), tuple(rest), tensor)
    return made
