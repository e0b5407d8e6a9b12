"""Where each image of a preparation goes, and how all of them get there or none."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from warmstart.console import log
from warmstart.data.decode import IMAGE_SUFFIXES, CorruptImage
from warmstart.data.folders import ORIGINS, PREPARED, UNREADABLE
from warmstart.data.pool import Pool
from warmstart.data.scan import Progress
from warmstart.errors import UserError

_LONGEST_NAME = 200  # bytes; file systems take 255


def places_of(pool: Pool, names: tuple[str, ...]) -> list[str]:
    """CLASS/FILE of each image: its own name, with its folders where two of a class have the same."""
    paths = [PurePosixPath(name) for name in pool.ids]
    classes = [names[code] for code in pool.targets.tolist()]
    own = [_with_suffix(path.name, pool, index) for index, path in enumerate(paths)]
    places = [f"{name}/{file}" for name, file in zip(classes, own, strict=True)]
    num = Counter(place.casefold() for place in places)
    taken: set[str] = set()
    for index, place in enumerate(places):
        if num[place.casefold()] > 1:
            places[index] = f"{classes[index]}/{_with_suffix('_'.join(paths[index].parts), pool, index)}"
    for index, place in enumerate(places):
        path, number = PurePosixPath(place), 1
        while places[index].casefold() in taken:
            number += 1
            places[index] = f"{path.parent}/{path.stem}-{number}{path.suffix}"
        taken.add(places[index].casefold())
    return places


def _with_suffix(name: str, pool: Pool, index: int) -> str:
    """A file name that is not hidden, and says what the file is."""
    short = name.replace("/", "_").encode()[-_LONGEST_NAME:].decode(errors="ignore")
    name = short.lstrip("._\\") or "image"
    if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
        return name
    with Image.open(io.BytesIO(pool.encoded(index))) as image:
        return f"{name}.{str(image.format).lower()}"


def records_of(record: dict[str, Any], pool: Pool, places: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files beside the split folders, and what is in them."""
    unreadable = record["unreadable"]
    yield ORIGINS, _csv(("file", "origin"), zip(places, pool.ids, strict=True))
    if unreadable:
        yield UNREADABLE, _csv(("image", "reason"), unreadable)
    yield PREPARED, json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _csv(header: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writes = csv.writer(text)
    writes.writerow(header)
    writes.writerows(rows)
    return text.getvalue()


def write_folders(
    target: Path,
    pool: Pool,
    places: Sequence[str],
    records: Iterator[tuple[str, str]],
    on_progress: Progress | None,
) -> None:
    """All files into a hidden folder, which then gets its name. What an interrupted preparation left is removed."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if unfinished.exists():
            log.info("removing what an interrupted preparation has left: %s", unfinished)
            shutil.rmtree(unfinished)
        log.info("copying %d images to %s", len(places), target)
        for index, place in enumerate(places):
            file = unfinished / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pool.encoded(index))
            if on_progress is not None:
                on_progress(index + 1, len(places))
        for name, text in records:
            (unfinished / name).write_text(text, encoding="utf-8", newline="")
        if target.exists():
            target.rmdir()
        unfinished.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}",
            "a folder that can be written to, with room for all",
        ) from error
    except CorruptImage as error:
        raise UserError(f"an image changed while it was copied: {error.reason}", "data at rest") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # it is gone if all went well
