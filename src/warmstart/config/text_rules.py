"""Cross-field rules of the section `text`. What only a file of weights can contradict: see models/image_text/."""

from __future__ import annotations

from pathlib import Path

from warmstart.config.places import expanded
from warmstart.config.schema import Config
from warmstart.config.text_section import TextConfig, is_prompt_file
from warmstart.errors import UserError


def text_problems(config: Config) -> list[UserError]:
    """Settings of texts beside a model that has none, and a file of prompts that is not there."""
    name, text = config.model.name, config.text
    given = [leaf for leaf, field in TextConfig.model_fields.items() if getattr(text, leaf) != field.default]
    found = []
    if given and name is not None and not name.startswith("hf:"):
        found.append(
            UserError(
                f"--text.{given[0]}: {name} has no text tower",
                "a CLIP or SigLIP: --model hf:FOLDER",
                f"leave {' and '.join(f'--text.{leaf}' for leaf in given)} out",
            )
        )
    if is_prompt_file(text.prompts) and not Path(expanded(text.prompts[0])).is_file():
        found.append(
            UserError(f"--text.prompts: {text.prompts[0]} does not exist", "a YAML or JSON file of prompts")
        )
    return found
