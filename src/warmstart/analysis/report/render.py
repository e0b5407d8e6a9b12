"""A page as HTML: the only place that knows the templates. What is not ours (names of classes, paths) is escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from warmstart.analysis.pages import document
from warmstart.analysis.report.blocks import Page
from warmstart.analysis.report.words import FOLDER, Words

KIND = "report"  # of our pages
_HTML_LANGUAGES = {"en": "en", "zh": "zh-CN"}


def render(page: Page) -> str:
    """The whole file."""
    body = _template().render(page=page, words=Words(page.language))
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return document(page.title, body, KIND, style, _HTML_LANGUAGES[page.language])


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
