"""Names of classes -> texts that a text tower reads, and what a caller asks of an image-text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from warmstart.config.prompt_file import read_prompts
from warmstart.config.text_section import NAME, TextConfig, is_prompt_file
from warmstart.errors import UserError, closest, listing

DEFAULT = "a photo of a {}."  # Radford et al. 2021, section 3.1.4
_SEPARATOR = "#"
_NO_SETTINGS = TextConfig()
LINEAR, ZERO_SHOT, CONTRASTIVE = "linear", "zero-shot", "contrastive"


@dataclass(frozen=True)
class Texts:
    """The settings, and the folder with the tokenizer of a model that comes from a run (None: it has its own).

    `prompts` are the texts of each class, where these are known better than the settings say.
    """

    settings: TextConfig = _NO_SETTINGS
    processor: Path | None = None
    prompts: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class ClassTexts:
    """`prompts` are the texts of each class; None: those that the weights state, or none, for a head without texts.

    `processor` is as in `Texts`.
    """

    classes: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]] | None
    processor: Path | None = None


def split_head(bare: str) -> tuple[str, str]:
    """`FOLDER#zero-shot` -> (FOLDER, zero-shot). The head is part of the architecture, and so of the name; a name
    without one has a linear head."""
    place, mark, head = bare.rpartition(_SEPARATOR)
    return (place, head) if mark and head in (ZERO_SHOT, CONTRASTIVE) else (bare, LINEAR)


def with_head(name: str, head: str) -> str:
    """The inverse of `split_head`."""
    return name if head == LINEAR else f"{name}{_SEPARATOR}{head}"


def class_prompts(given: tuple[str, ...], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The texts of each class: `given` are templates, or one file, or nothing, which is the default template.

    In a text an underscore of a name is a space, as the towers were trained on sentences.
    UserError: a file for other classes than these, or templates without a place for the name.
    """
    found: list[str] | dict[str, list[str]] = list(given) or [DEFAULT]
    if is_prompt_file(given):
        found = read_prompts(given[0])
    if isinstance(found, dict):
        _check_names(given[0], found, classes)
        return {name: tuple(_filled(text, name) for text in found[name]) for name in classes}
    if bad := [template for template in found if NAME not in template]:
        raise UserError(
            f"--text.prompts: {bad[0]!r} has no {{}} where the name of the class goes",
            "templates such as 'a photo of a {}.'",
        )
    return {name: tuple(_filled(template, name) for template in found) for name in classes}


def templates_of(prompts: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """The templates that give the texts of all classes; None where the classes have texts of their own."""
    name, texts = next(iter(prompts.items()))
    templates = tuple(text.replace(_spoken(name), NAME) for text in texts)
    is_all = all(tuple(found) == tuple(_filled(t, n) for t in templates) for n, found in prompts.items())
    return templates if is_all else None


def _filled(text: str, name: str) -> str:
    return text.replace(NAME, _spoken(name))


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _check_names(file: str, found: Mapping[str, object], classes: Sequence[str]) -> None:
    unknown = [name for name in found if name not in classes]
    missing = [name for name in classes if name not in found]
    if unknown:
        raise UserError(
            f"--text.prompts {file} has prompts for {listing(map(repr, unknown), 5)}, which the data have not",
            f"the classes {listing(classes)}",
            closest(unknown[0], missing or list(classes)),
        )
    if missing:
        raise UserError(
            f"--text.prompts {file} has no prompts for {listing(map(repr, missing), 5)}",
            f"prompts for each of the classes {listing(classes)}",
        )
