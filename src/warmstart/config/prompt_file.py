"""A YAML or JSON file of prompts: class -> prompts, or a list of templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from warmstart.config.places import expanded
from warmstart.errors import UserError

_FORM = "a list of templates ('a photo of a {}.'), or for every class a prompt or a list of them"


def read_prompts(file: str) -> list[str] | dict[str, list[str]]:
    """Templates, or prompts by class. JSON is read as the YAML that it is.

    UserError: no such file, not YAML, or of another form.
    """
    path = Path(expanded(file))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--text.prompts {file} cannot be read: {error}", "a file of prompts", _FORM
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--text.prompts {file} is not YAML: {reason}", _FORM) from error
    if isinstance(content, list) and _are_texts(content):
        return content
    if isinstance(content, dict) and content:
        found = {str(name): [text] if isinstance(text, str) else text for name, text in content.items()}
        if all(_are_texts(texts) for texts in found.values()):
            return found
    raise UserError(f"--text.prompts {file} has another form", _FORM)


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and text.strip() for text in value)
    )
