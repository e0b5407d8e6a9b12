"""A safetensors model in several files, as Hugging Face writes it: an index that says where each tensor is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from warmstart.errors import UserError, listing

INDEX_SUFFIX = ".safetensors.index.json"
_NUM_EXAMPLES = 5


def shard_files(index: Path) -> dict[Path, list[str]]:
    """File -> names of the tensors it must hold; all files exist and lie beside the index, or a UserError."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map = content["weight_map"]
        names: dict[str, list[str]] = {}
        for tensor, name in weight_map.items():
            names.setdefault(name, []).append(tensor)
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map must name files of the same folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is not an index of safetensors files: {type(error).__name__}: {error}",
            '{"weight_map": {tensor: file}}, all files in its folder',
            "copy or download it again",
        ) from error
    files = {index.parent / name: tensors for name, tensors in sorted(names.items())}
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"{index} needs {len(files)} files, and {len(absent)} of them are missing: {listing(absent)}",
            f"all of them in {index.parent}",
            "copy or download the missing files",
        )
    return files


def check_shard(index: Path, file: Path, names: list[str], state: Mapping[str, Tensor]) -> None:
    absent = [name for name in names if name not in state]
    if absent:
        raise UserError(
            f"{file} lacks {len(absent)} tensors that {index.name} says it holds: "
            f"{listing(absent, _NUM_EXAMPLES)}",
            "an index and files that were saved together",
            "copy or download the whole folder again",
        )


def digest(index: Path) -> str:
    """One sha256 for the whole model: over the index, then the sha256 of each file in order of names."""
    total = hashlib.sha256(index.read_bytes())
    for file in shard_files(index):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
