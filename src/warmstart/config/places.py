"""Where data lie: a path, a data set of torchvision (`torchvision:NAME@ROOT`), or arrays (`memory:HASH`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.config.schema import Config

TORCHVISION, MEMORY = "torchvision:", "memory:"


def is_path(place: str) -> bool:
    return not place.startswith((TORCHVISION, MEMORY))


def split_place(place: str) -> tuple[str, str | None]:
    """(NAME, ROOT or None) of `torchvision:NAME@ROOT`."""
    name, at, root = place.removeprefix(TORCHVISION).partition("@")
    return name, root if at and root else None


def absolute(place: str) -> str:
    """The same place as seen from any working directory."""
    if place.startswith(MEMORY):
        return place
    if is_path(place):
        return str(Path(expanded(place)).resolve())
    name, root = split_place(place)
    return place if root is None else f"{TORCHVISION}{name}@{Path(expanded(root)).resolve()}"


def expanded(path: str) -> str:
    """The path of data as they are opened: `~` is the home folder."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser raises for a home that is not there)


def short_name(place: str) -> str:
    """What a run on these data is called."""
    if place.startswith(MEMORY):
        return "arrays"
    return Path(place).resolve().name if is_path(place) else split_place(place)[0].replace("/", "-")


def check_on_disk(config: Config, why: str) -> None:
    """UserError where data or the model are objects of this process, which other processes do not have."""
    inside = [
        name
        for name, is_inside in (
            ("data", (config.data.path or "").startswith(MEMORY)),
            ("the model", (config.model.name or "").startswith("object:")),
        )
        if is_inside
    ]
    if inside:
        raise UserError(
            f"{' and '.join(inside)} are objects of this process, which other processes do not have",
            f"paths and names: {why}",
        )
