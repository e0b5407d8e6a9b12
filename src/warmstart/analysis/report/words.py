"""The words of a report, English and Chinese, from one catalogue: templates/words.toml and templates/findings.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")
FOLDER = Path(__file__).parent / "templates"


@cache
def catalogue(file: str) -> dict[str, list[str]]:
    """name -> its words, in the order that the file states."""
    content: dict[str, list[str]] = tomllib.loads((FOLDER / file).read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class Words:
    """The catalogue in one language: `words("better")`, `words("at_step", step=3)`."""

    language: str

    def __call__(self, name: str, /, **values: object) -> str:
        text = catalogue("words.toml")[name][LANGUAGES.index(self.language)]
        return text.format(**values) if values else text

    def known(self, name: str) -> str:
        """The word for a name of the run's own, such as a metric or a split; the name itself where there is none."""
        return self(name) if name in catalogue("words.toml") else name.replace("_", " ")

    def finding(self, name: str, title: str, remedy: str) -> tuple[str, str]:
        """What a finding is called and what to do: as the diagnosis says it, or the catalogue's words for its kind."""
        if self.language == "en":
            return title, remedy
        own, advice = catalogue("findings.toml").get(name, [title, remedy])
        return own, advice
