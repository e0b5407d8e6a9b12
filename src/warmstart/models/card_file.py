"""What an export leaves beside weights that other programs read: warmstart.json, with what their own file cannot say.

It is believed as long as the weights are those that it was written for: a program that trains on may write others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.models.contents import look_at
from warmstart.models.hf_folder import parse_config
from warmstart.models.metadata import HF_CONFIG, NAME, expand
from warmstart.models.shards import INDEX_SUFFIX, digest

CARD = "warmstart.json"
_WEIGHTS, _SHA256, _ENTRIES = "weights", "sha256", "entries"
_ELSEWHERE = ("hf:", "object:")  # names of a folder that may be gone, and of what one process has


def card_beside(path: Path) -> Path:
    """Where the card of a file, or of a folder that holds nothing but files of another program, stands."""
    return path.with_name(f"{path.name}.{CARD}")


def own_part(file: Path, text: Mapping[str, str], own_names: bool) -> dict[str, Any]:
    """The part of the card of `file` by which it is read: `text` is what a file of ours would say of itself, and
    `own_names` whether its tensors have the model's own names."""
    entries = expand(text)
    name = entries.pop(NAME)
    if own_names:
        entries[NAME] = name
    elif name.startswith(_ELSEWHERE):
        entries.pop(HF_CONFIG, None)
    else:
        entries["arch"] = name
    return {_WEIGHTS: {_SHA256: _sha256_of(file), _ENTRIES: entries}}


def entries_beside(file: Path, sha256: str) -> dict[str, str]:
    """What a card says of exactly this file, as a safetensors file of ours would; {} without one.

    UserError: a card that is not JSON.
    """
    folder = file.absolute().parent
    for card in (card_beside(file), folder.parent / f"{folder.name}.{CARD}", folder / CARD):
        if card.is_file():
            found = parse_config(card.read_bytes(), str(card)).get(_WEIGHTS)
            entries = (
                found.get(_ENTRIES) if isinstance(found, dict) and found.get(_SHA256) == sha256 else None
            )
            if isinstance(entries, dict):
                return {key: value for key, value in entries.items() if isinstance(value, str)}
    return {}


def _sha256_of(file: Path) -> str:
    return digest(file) if file.name.endswith(INDEX_SUFFIX) else look_at(file)[1]
