"""What a user, or files beside the data, say about index masks: names of their ids, colours, the ignored id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from warmstart.config.mask_values import colour_table, is_file_of_colours
from warmstart.config.schema import DataConfig
from warmstart.data.geometry import MaskRules
from warmstart.data.labels import check_names
from warmstart.data.masks import Colour, MaskCoding
from warmstart.data.text_files import read_text
from warmstart.errors import UserError, closest, listing

IGNORE, LARGEST = 255, 65535  # the id of no class, where nothing else is said: of up to 255 classes, of more
_CLASS_FILES = ("classes.txt", "codes.txt", "classes.json")
_NUMBERED = re.compile(r"(\d+)\s*[\s:,;=]\s*(\S.*)", re.ASCII)
_COLOUR_LINE = "red, green and blue, then an id or a name, on each line"
_COLOUR = re.compile(
    r"(?:(?P<before>[^\d,;\t][^,;\t]*)[,;\t ]\s*)?"
    r"(?P<red>\d{1,3})[.,;\t ]+(?P<green>\d{1,3})[.,;\t ]+(?P<blue>\d{1,3})"
    r"(?:[=,;\t ]+(?P<id>\d{1,5}))?(?:[,;\t ]+(?P<after>[^\d,;\t][^,;\t]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class MaskSettings:
    """The settings of masks, as given; a single name of `classes` is a file of names."""

    place: str | None = None
    classes: tuple[str, ...] = ()
    ignore: int | None = None
    remap: tuple[tuple[int, int], ...] = ()
    colours: str | None = None
    flip_pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: DataConfig) -> MaskSettings:
        return cls(
            settings.masks,
            settings.mask_classes,
            settings.ignore,
            settings.mask_remap,
            settings.mask_colours,
            settings.flip_pairs,
        )

    @property
    def given(self) -> dict[str, str]:
        """Flag -> value of what was given."""
        values = {
            "--masks": self.place,
            "--mask-classes": ",".join(self.classes),
            "--ignore": None if self.ignore is None else str(self.ignore),
            "--mask-remap": ",".join(f"{old}={new}" for old, new in self.remap),
            "--mask-colours": self.colours,
            "--flip-pairs": ",".join(f"{left}:{right}" for left, right in self.flip_pairs),
        }
        return {flag: value for flag, value in values.items() if value}

    def rules(self, classes: tuple[str, ...], ignore: int) -> MaskRules:
        """The rules of geometry once the classes are known. Raises UserError for pairs of what is no class."""
        numbers = {name: number for number, name in enumerate(classes)}
        numbers |= {str(number): number for number in range(len(classes)) if str(number) not in numbers}
        strange = [name for pair in self.flip_pairs for name in pair if name not in numbers]
        if strange:
            hints = dict.fromkeys(hint for name in strange if (hint := closest(name, classes)))
            raise UserError(
                f"--flip-pairs: {listing(map(repr, strange))} are no classes",
                f"pairs of {listing(classes)}, or of their ids",
                " ".join(hints),
            )
        return MaskRules(ignore, tuple((numbers[left], numbers[right]) for left, right in self.flip_pairs))


NO_MASKS = MaskSettings()


@dataclass(frozen=True)
class Legend:
    """What ids mean; without `names` each id is a class called by its number. `coding` reads ids of any size."""

    names: tuple[str, ...] | None
    ignore: int
    coding: MaskCoding
    notes: tuple[str, ...] = ()

    def stamp(self) -> bytes:
        """What tells this meaning from any other."""
        return repr((self.names, self.ignore, self.coding.colours, self.coding.remap)).encode()


def read_legend(settings: MaskSettings, root: Path) -> Legend:
    """The legend of data that lie in `root`. Raises UserError for files and settings that contradict themselves."""
    colours, colour_names = _colours(settings.colours, root)
    names, where = _names(settings.classes, root)
    if names is None and colour_names is not None:
        names, where = colour_names, str(settings.colours)
    notes = [f"classes by {where}"] if where else []
    usual = IGNORE if names is None or len(names) <= IGNORE else LARGEST
    ignore = usual if settings.ignore is None else settings.ignore
    if names is not None and ignore < len(names):
        names, note = _without_ignored(names, ignore)
        notes.append(note)
    if names is not None:
        check_names(names)
    return Legend(names, ignore, MaskCoding(colours, dict(settings.remap), wide=True), tuple(notes))


def _without_ignored(names: tuple[str, ...], ignore: int) -> tuple[tuple[str, ...], str]:
    """The names without that of the ignored id, which comes last, and a note."""
    if ignore == len(names) - 1:
        return names[:-1], f"the last of the classes, {names[-1]}, has the ignored id {ignore} and is none"
    moved = [(ignore, IGNORE), *((number, number - 1) for number in range(ignore + 1, len(names)))]
    raise UserError(
        f"the ignored id {ignore} is the class {names[ignore]!r}, with classes after it",
        f"classes from 0 to {len(names) - 2}, and an ignored id beyond them",
        f"--mask-remap {','.join(f'{old}={new}' for old, new in moved)}, without --ignore, and names"
        f" without {names[ignore]!r}; or --ignore with an id that is no class",
    )


def _names(given: tuple[str, ...], root: Path) -> tuple[tuple[str, ...] | None, str]:
    """(names in the order of ids, the file they are from)."""
    if len(given) > 1:
        return given, ""
    if given:
        path = _place("--mask-classes", given[0], root)
    else:
        found = [root / name for name in _CLASS_FILES if (root / name).is_file()]
        if not found:
            return None, ""
        path = found[0]
    text = read_text(path, "the names of the classes")
    names = _names_of_json(path, text) if path.suffix.lower() == ".json" else _names_of_lines(text)
    if len(names) < 2:
        raise UserError(
            f"{path} names {listing(names) or 'no class'}",
            "at least two classes, one on each line, in the order of their ids",
            "--mask-classes a,b,c, or a file of names",
        )
    return names, path.name


def _names_of_lines(text: str) -> tuple[str, ...]:
    """One name per line; numbers before all names are their ids."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if [int(match[1]) for match in numbered if match] == list(range(len(lines))):
        lines = [match[2].strip() for match in numbered if match]
    return tuple(lines)


def _names_of_json(path: Path, text: str) -> tuple[str, ...]:
    """A list of names, `{id: name}` or `{name: id}`, or one of these as `classes`, `names` or `id2label`."""
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            content = next(
                (content[key] for key in ("classes", "names", "id2label") if key in content), content
            )
        if isinstance(content, dict):
            pairs = [(int(k), v) if str(k).isdigit() else (int(v), k) for k, v in content.items()]
            if sorted(number for number, _ in pairs) != list(range(len(pairs))):
                raise ValueError(f"the ids are not 0 to {len(pairs) - 1}")
            content = [name for _, name in sorted(pairs)]
        if not isinstance(content, list) or not all(isinstance(name, (str, int)) for name in content):
            raise ValueError("it holds no list of names")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: {error}",
            'a list of names, or {"0": "sky", "1": "road"}',
            "correct it, or --mask-classes",
        ) from error
    return tuple(map(str, content))


def _colours(given: str | None, root: Path) -> tuple[dict[Colour, int], tuple[str, ...] | None]:
    """(id of each colour, names where a file gives them, by id)."""
    if given is None:
        return {}, None
    if not is_file_of_colours(given):
        return colour_table(given), None
    path = _place("--mask-colours", given, root)
    text = read_text(path, "a table of colours")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and not any(map(str.isdigit, lines[0])):  # a header
        del lines[0]
    table: dict[Colour, int] = {}
    names: dict[int, str] = {}
    for number, line in enumerate(lines):
        match = _COLOUR.fullmatch(line)
        colour = [int(match[part]) for part in ("red", "green", "blue")] if match else []
        if match is None or max(colour) > 255:
            raise UserError(f"{path}: {line!r} is no colour", _COLOUR_LINE)
        code = int(match["id"] or number)
        if table.setdefault((colour[0], colour[1], colour[2]), code) != code:
            raise UserError(f"{path}: the colour {colour} has two ids", "one id for each colour")
        if name := match["before"] or match["after"]:
            names.setdefault(code, name.strip())
    if not table:
        raise UserError(f"{path} holds no colours", _COLOUR_LINE)
    ordered = tuple(names[code] for code in sorted(names))
    return table, ordered if len(names) > 1 and sorted(names) == list(range(len(names))) else None


def _place(flag: str, written: str, root: Path) -> Path:
    """A file as named, or beside the data."""
    for path in (Path(written).expanduser(), root / written):
        if path.is_file():
            return path
    near = closest(written, [path.name for path in root.iterdir()])
    raise UserError(f"{flag} {written}: there is no such file", f"a file, or one in {root}", near)
