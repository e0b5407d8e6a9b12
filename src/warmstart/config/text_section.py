"""The section `text`: what an image-text model (CLIP, SigLIP) makes of the names of the classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from warmstart.config.section import Section

NAME = "{}"  # in a template: the place of the class's name
_FILES = (".yaml", ".yml", ".json")


def parse_prompts(value: Any) -> tuple[str, ...]:
    """Templates divided by semicolons (they may hold commas), a list of them, or one file."""
    if value is None:
        return ()
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"{value!r} is no list of texts; write 'a photo of a {{}}.;a drawing of a {{}}.', or a file"
        )
    prompts = tuple(part.strip() for part in parts if part.strip())
    if prompts == ("none",):
        return ()
    if len(prompts) == 1 and is_prompt_file(prompts):
        return prompts
    if bad := [prompt for prompt in prompts if NAME not in prompt]:
        raise ValueError(
            f"{bad[0]!r} has no {{}} where the name of the class goes, and is no YAML or JSON file"
        )
    return prompts


def is_prompt_file(prompts: tuple[str, ...]) -> bool:
    return len(prompts) == 1 and NAME not in prompts[0] and prompts[0].lower().endswith(_FILES)


Prompts = Annotated[tuple[str, ...], BeforeValidator(parse_prompts), PlainSerializer(list)]


class TextConfig(Section):
    """Image-text models: what the names of the classes are for."""

    head: Literal["auto", "linear", "zero-shot", "contrastive"] = Field(
        "auto",
        description="CLIP, SigLIP: linear, zero-shot (rows that are texts), contrastive (both towers)"
        " [auto: as the weights have it, else linear]",
    )
    prompts: Prompts = Field(
        (),
        description="'a photo of a {}.;a drawing of a {}.', averaged; or a YAML or JSON file class -> prompts"
        " [default: a photo of a {}.]",
    )
    tower: Literal["trained", "frozen"] = Field(
        "trained", description="contrastive: the text tower trains, or its embeddings are computed once"
    )
    captions: str | None = Field(
        None, description="contrastive: column with a text of its own for each training image"
    )
