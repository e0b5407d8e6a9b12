"""Parts of a comparison's page: requirements, cost, the samples that changed as pictures, what repeats it."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

from warmstart.analysis.pages import thumbnail_uri
from warmstart.analysis.report.blocks import Chip, Commands, Gallery, Picture, Section, Table
from warmstart.analysis.report.numbers import counted, plain
from warmstart.analysis.report.pictures import open_pictures, read_rgb
from warmstart.analysis.report.words import Words
from warmstart.errors import UserError
from warmstart.records import RETAIN
from warmstart.run import layout, reader

_NUM_SHOWN, _SIDE, _TINY = 12, 320, 48
_COSTS = (
    "num_parameters",
    "num_trained",
    "macs",
    "bytes_of_weights",
    "seconds",
    "start_loss",
    "best",
    "best_step",
    "steps_to_other",
)


def checks(found: dict[str, Any], words: Words) -> list[Section]:
    if not found["checks"]:
        return []
    cells = [
        (
            check["text"],
            Chip(words("holds" if check["passed"] else "fails"), "good" if check["passed"] else "bad"),
            check["why"],
        )
        for check in found["checks"]
    ]
    return [Section("checks", words("checks"), (Table(("", "", ""), tuple(cells), 3),))]


def costs(histories: list[dict[str, Any]], words: Words) -> Table | None:
    """Rows that nobody knows are left out."""
    rows = []
    for name in _COSTS:
        values = [history.get(name) for history in histories]
        if values != [None, None]:
            word = words("best_of_val") if name == "best" else words(name)
            rows.append((word, *(_cost(name, value) for value in values)))
    return Table(("", "A", "B"), tuple(rows)) if rows else None


def _cost(name: str, value: Any) -> str:
    if value is None or name in ("start_loss", "best"):
        return plain(value)
    if name in ("bytes_of_weights", "macs"):
        return f"{value / 1e6:.2f}"
    return counted(value) if name.startswith("num_") else f"{value:,.0f}"


def samples(found: dict[str, Any], folder: Path, words: Words) -> tuple[Gallery, ...]:
    """What B broke and fixed, as pictures from the data that were compared; none where nothing changed.

    Raises:
        UserError: the images are gone, or others lie there now.
    """
    file = folder / "samples.csv"
    places = [reader.split_reference(name)[0] for name in found["models"]]
    if not found["fixed"] + found["broken"]:
        return ()
    run = next((reader.open_run(place) for place in places if layout.is_run(place)), None)
    if run is None or not file.is_file():
        raise UserError(f"{places[0] if run is None else file} is not there")
    data = found["data"]
    seen = run if data["task"] is None else run.of_task(data["task"])
    is_other = seen.resolved["data"]["fingerprint"] != data["fingerprint"] or found["split"] == RETAIN
    if data["path"] is None and is_other:
        raise UserError(f"{run.path} is about other data than were compared")
    pictures = open_pictures(seen, None if data["path"] is None else data)
    with file.open(encoding="utf-8", newline="") as content:
        _, *rows = csv.reader(content)
    galleries = []
    for word in ("broken", "fixed"):
        own = [row for row in rows if row[1] == word]
        known = pictures.places([row[0] for row in own[:_NUM_SHOWN]])
        shown = []
        for name, _, first, second in own[:_NUM_SHOWN]:
            part, place = known.get(name, (None, 0))
            image = None if part is None else read_rgb(part.pixels, place)
            if image is not None:
                uri = thumbnail_uri(image, _SIDE)
                shown.append(
                    Picture(((uri, ""),), f"A: {first}", f"B: {second}", name, max(image.shape[:2]) <= _TINY)
                )
        if shown:
            told = words("samples_shown", shown=len(shown), num=len(own))
            galleries.append(Gallery(tuple(shown), f"{words(f'{word}_samples')}: {told}"))
    if not galleries:
        raise UserError("none of the samples is among the images")
    return tuple(galleries)


def commands(found: dict[str, Any], file: Path, words: Words) -> Commands:
    if found["question"] == "recipes":
        parts = ["--recipes", *(",".join(runs) for runs in found["recipes"])]
    else:
        parts = found["models"] if found["question"] == "models" else [row["run"] for row in found["runs"]]
    line = f"warmstart compare {shlex.join(parts)}"
    if found["question"] != "runs":
        line += f" --split {shlex.quote(found['split'])}"
        told = {"task": found["data"]["task"], "data": found["data"]["path"], **found["data"]["labels"]}
        given = {name: value for name, value in told.items() if value is not None}
        line += "".join(f" --{name.replace('_', '-')} {shlex.quote(_flag(given[name]))}" for name in given)
    page = f"warmstart report {shlex.quote(str(file.parent))} --lang {words.language}"
    return Commands(((words("compare_again"), line), (words("report_again"), page)))


def _flag(value: Any) -> str:
    """As a flag takes it: a list with commas, pairs of numbers as 11=255."""
    if not isinstance(value, list):
        return str(value)
    return ",".join("=".join(map(str, each)) if isinstance(each, list) else str(each) for each in value)
