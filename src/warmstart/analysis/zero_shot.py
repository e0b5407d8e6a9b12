"""What an evaluation says of a classifier that is made of texts and was never trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.errors import listing
from warmstart.inference.restore import Restored
from warmstart.models.image_text.prompts import templates_of

_NUM_NAMED = 8


@dataclass(frozen=True)
class ZeroShot:
    """`model` is the name of what embedded the images and the texts, `prompts` the texts of each class."""

    model: str
    prompts: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """`prompts` are the templates, or by class where they differ in more than its name."""
        templates = templates_of(self.prompts)
        by_class = {name: list(texts) for name, texts in self.prompts.items()}
        return {"model": self.model, "prompts": by_class if templates is None else list(templates)}

    @property
    def text(self) -> str:
        templates = templates_of(self.prompts)
        if templates is not None:
            return f"zero-shot by the prompts {listing(map(repr, templates), _NUM_NAMED)}"
        texts = [text for own in self.prompts.values() for text in own]
        return f"zero-shot by {len(texts)} prompts of its classes: {listing(map(repr, texts), _NUM_NAMED)}"


def zero_shot_in(restored: Restored) -> ZeroShot | None:
    if not restored.zero_shot:
        return None
    assert restored.built.text is not None, "a classifier made of texts"
    return ZeroShot(restored.built.name, restored.built.text.prompts)
