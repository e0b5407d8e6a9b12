"""`warmstart report`: one HTML file about a run, a comparison or a sweep. Needs no torch, unless masks are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from warmstart import __version__
from warmstart.analysis.pages import generator
from warmstart.analysis.report.blocks import Page
from warmstart.analysis.report.comparison_page import comparison_page
from warmstart.analysis.report.render import KIND, render
from warmstart.analysis.report.run_page import run_page
from warmstart.analysis.report.sweep_page import sweep_page
from warmstart.analysis.report.words import LANGUAGES, Words
from warmstart.errors import UserError, closest
from warmstart.run import layout, reader, writer
from warmstart.shown import Shown

_HEAD = 2000  # bytes in which a page says whose it is


@dataclass(frozen=True)
class Report(Shown):
    """A page that was written to `path`; `left_out` says what is not on it, and why."""

    path: str
    about: str
    kind: str  # run, comparison or sweep
    language: str
    verdict: str
    sections: tuple[str, ...]
    left_out: tuple[str, ...]
    num_bytes: int

    def text(self) -> str:
        lines = [self.verdict, f"{len(self.sections)} sections: {', '.join(self.sections)}"]
        lines += [f"left out: {what}" for what in self.left_out]
        return "\n".join([*lines, f"written: {self.path} ({self.num_bytes / 1e6:.1f} MB)"])

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def write_report(target: str, language: str = "en", images: bool = True, output: str | None = None) -> Report:
    """Write the page of a run, of a comparison or a sweep (its folder, or its JSON).

    Raises:
        UserError: none of these, or damaged; an unknown language; a file that is none of our pages and would be lost.
    """
    if language not in LANGUAGES:
        raise UserError(f"--lang {language}", " or ".join(LANGUAGES), closest(language, LANGUAGES))
    if output is not None:
        _check_place(Path(output))
    words = Words(language)
    kind, home, page = _page(target, words, images)
    place = Path(output) if output is not None else home / layout.REPORT
    _check_place(place)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = replace(page, footer=words("made", version=__version__, when=when))
    content = render(page).encode("utf-8", "backslashreplace")  # file names that are not UTF-8 exist
    writer.write_whole(place, content)
    titles = tuple(section.title for section in page.sections)
    sentence = page.verdict.sentence
    return Report(str(place), str(home), kind, language, sentence, titles, page.left_out, len(content))


def _page(target: str, words: Words, images: bool) -> tuple[str, Path, Page]:
    """(what it is about, its folder, its page)."""
    place = Path(target)
    if not layout.is_run(place):
        for name in (layout.COMPARISON, layout.SWEEP):
            found = place if place.is_file() else place / name
            if found.name == name and found.is_file():
                make = (
                    comparison_page(found, words, images)
                    if name == layout.COMPARISON
                    else sweep_page(found, words)
                )
                return found.stem, found.parent, make
    path, at = reader.split_reference(target)
    if at is not None and layout.is_run(path):
        raise UserError(
            f"{target} is one step of a run", "the run, whose page is about all of it", f"name {path}"
        )
    run = reader.open_run(target)
    return "run", run.path, run_page(run, words, images)


def _check_place(place: Path) -> None:
    """UserError for a folder, a folder that is not there, and a file that is not one of our pages."""
    if place.is_dir() or not place.parent.is_dir():
        what = "is a folder" if place.is_dir() else "lies in a folder that does not exist"
        raise UserError(f"--output {place} {what}", "a file in a folder that exists", "--output PAGE.html")
    if place.exists():
        with place.open("rb") as file:
            is_ours = generator(KIND).encode() in file.read(_HEAD)
        if not is_ours:
            raise UserError(f"{place} exists, and is no report of ours", "a new file", "another --output")
