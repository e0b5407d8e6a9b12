"""How a result shows itself in a notebook: what people would read in a terminal, and its pictures below."""

from __future__ import annotations

import base64
import html
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

# In the order in which people read them; each task measures some.
METRICS = (
    "combined",
    "miou",
    "fscore",
    "fscore_per_image",
    "fscore_per_batch",
    "accuracy",
    "map",
    "f1",
    "f1_micro",
    "exact_match",
    "f1_positive",
    "precision_positive",
    "recall_positive",
    "threshold",
    "accuracy_at_threshold",
    "f1_positive_at_threshold",
    "loss",
    "top5",
    "ece",
    "fisher_ratio",
    "fisher_document",
    "most_confident_mistake",
    "likely_mislabelled",
)


class Shown(ABC):
    """A result with `text()`; `pictures` are PNG or JPEG files, of which those that still exist are shown."""

    @abstractmethod
    def text(self) -> str:
        """What people read in a terminal."""

    @property
    def pictures(self) -> list[Path]:
        return []

    def _repr_html_(self) -> str:
        """The text, and the pictures inside the page: a notebook that is sent on keeps them."""
        images = [_image(path) for path in self.pictures if path.is_file()]
        return "\n".join([f"<pre>{html.escape(self.text())}</pre>", *images])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """Both forms: IPython's terminal has the text too, instead of a record of all its numbers."""
        return {"text/plain": self.text(), "text/html": self._repr_html_()}

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The text of results that are lists or dicts as well: for those IPython asks no bundle."""
        printer.text(self.text())


def _image(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<img alt="{html.escape(path.stem)}" style="max-width: 100%" src="data:image/{kind};base64,{data}">'
    )
