"""Labels as a table writes them -> targets: one class per image, or a set of classes (multi-label).

Shapes: N rows, K classes. A set is a row of 0 and 1, as a multi-label loss takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

import numpy as np

from warmstart.errors import UserError, closest, listing

SEPARATOR = "|"
_MISSING = {"nan", "na", "n/a", "<na>", "null"}  # what programs write where there is no value
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no", ""}


@dataclass(frozen=True, eq=False)
class Labels:
    """`targets` are int64 (N,) places in `names`, or uint8 (N, K): 1 where the class is in the set."""

    targets: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """What each row says, as text: `cat`, or `cat|dog`."""
        if self.targets.ndim == 1:
            return [self.names[code] for code in self.targets]
        return [SEPARATOR.join(self.names[code] for code in np.flatnonzero(row)) for row in self.targets]


def read_labels(
    where: str,
    values: Sequence[object],
    names: tuple[str, ...] | None = None,
    class_ids: Sequence[object] | None = None,
) -> Labels:
    """One column of labels. Where a row holds a list, or text such as `cat|dog`, every row is a set.

    `names` are the file's own class names, in whose order the classes stand and into which numbers
    count; without them, `class_ids` may tell the order of text labels. A blank cell is an empty set.
    Raises UserError for a blank cell where each image has one class, and for labels without a name.
    """
    _check_kinds(where, values)
    if names is not None:
        check_names(names)
    unused = () if class_ids is None else (f"{where}: class_id is ignored: it orders single labels in text",)
    if any(isinstance(value, (list, tuple)) for value in values):
        sets = [value if isinstance(value, (list, tuple)) else (value,) for value in values]
        return _sets(where, sets, names, unused)
    texts = list(map(text_of, values))
    if names is None and any(SEPARATOR in text for text in texts):
        return _sets(where, [text.split(SEPARATOR) for text in texts], None, unused)
    missing = [row for row, text in enumerate(texts, 1) if not text]
    if missing:
        raise UserError(
            f"{where} is empty in {len(missing)} rows: row {listing(missing, 5)}",
            "a label in every row",
            f"fill these cells, or remove the rows (where labels are sets, a{SEPARATOR}b, a blank is the empty set)",
        )
    if names is not None:
        places = _places(where, values, names)
        return Labels(np.array([places[value] for value in values], dtype=np.int64), names, unused)
    found: tuple[str, ...] = sort_names(set(texts))
    notes: tuple[str, ...] = ()
    if class_ids is not None:
        found, notes = _ordered(where, texts, class_ids, found)
    number = {name: code for code, name in enumerate(found)}
    return Labels(
        np.array([number[text] for text in texts], dtype=np.int64), found, (*notes, *_odd(where, texts))
    )


def read_label_columns(title: str, columns: Mapping[str, Sequence[object]]) -> Labels:
    """A column per class that holds 0 or 1 (true, false, yes, no; a blank is 0). Raises UserError for others."""
    problems = []
    rows: dict[str, list[bool]] = {}
    for name, values in columns.items():
        words = ["" if value is None else str(value).strip().lower() for value in values]
        odd = [(row, values[row - 1]) for row, word in enumerate(words, 1) if word not in _YES | _NO]
        if odd:
            what = listing((f"{value!r} in row {row}" for row, value in odd), 3)
            problems.append(
                UserError(
                    f"{title}: the column {name} holds {what}",
                    "0 or 1, true or false, yes or no, or a blank for 0",
                    "correct these cells, or leave the column out of --label-columns",
                )
            )
        rows[name] = [word in _YES for word in words]
    if problems:
        raise UserError.of_problems(problems, title)
    names = sort_names(rows)
    targets = np.array([rows[name] for name in names], dtype=np.uint8).T
    return Labels(np.ascontiguousarray(targets), names, (_note(title, names),))


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: as numbers where all are."""
    found = sorted(names)
    if all(name.isascii() and name.isdigit() for name in found):
        found.sort(key=lambda name: (int(name), name))
    return tuple(found)


def text_of(value: object) -> str:
    """A cell as text; a missing number (NaN) is as blank as nothing."""
    is_missing = value is None or (isinstance(value, float) and value != value)
    return "" if is_missing else str(value).strip()


def check_names(names: Sequence[str]) -> None:
    """Raise UserError where two classes have one name."""
    twice = [name for name, num in Counter(names).items() if num > 1]
    if twice:
        raise UserError(
            f"the class names hold {listing(map(repr, twice))} twice", "a name of its own for every class"
        )


def _check_kinds(where: str, values: Sequence[object]) -> None:
    """Raise UserError for what no label is: a struct, bytes, a list in a list."""
    items = (item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,)))
    odd = next(
        (item for item in items if item is not None and not isinstance(item, (str, Number, np.generic))), None
    )
    if odd is not None:
        raise UserError(
            f"{where} holds {type(odd).__name__}, such as {str(odd)[:60]}",
            "text, numbers, true or false, or lists of those",
            "make a column of the names of the classes",
        )


def _odd(where: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The note on labels that may have been meant as no label."""
    found = Counter(text for text in texts if text.lower() in _MISSING)
    return tuple(
        f"{where}: {num} rows have the label {text!r}, which is taken for a class; blank cells say that none is known"
        for text, num in found.items()
    )


def group_codes(values: Sequence[object]) -> np.ndarray:
    """int64 (N,): equal text has an equal number; a blank is a group of its own."""
    number: dict[object, int] = {}
    texts = list(map(text_of, values))
    codes = [number.setdefault(text or row, len(number)) for row, text in enumerate(texts)]
    return np.array(codes, dtype=np.int64)


def _sets(
    where: str, sets: Sequence[Sequence[object]], names: tuple[str, ...] | None, notes: tuple[str, ...]
) -> Labels:
    if names is None:
        cleaned = [list(map(text_of, items)) for items in sets]
        items_of: Sequence[Sequence[object]] = [[text for text in items if text] for items in cleaned]
        classes = sort_names({str(item) for items in items_of for item in items})
        if not classes:
            raise UserError(f"{where} holds no label at all", "labels in some rows", "fill the column")
        places: Mapping[object, int] = {name: code for code, name in enumerate(classes)}
    else:
        items_of = [[item for item in items if text_of(item)] for items in sets]
        classes, places = names, _places(where, [item for items in items_of for item in items], names)
    targets = np.zeros((len(sets), len(classes)), dtype=np.uint8)
    for row, items in enumerate(items_of):
        targets[row, [places[item] for item in items]] = 1
    odd = () if names is not None else _odd(where, [str(item) for items in items_of for item in items])
    return Labels(targets, classes, (_note(where, classes), *notes, *odd))


def _note(where: str, names: Sequence[str]) -> str:
    return f"{where}: labels are sets: multi-label with {len(names)} classes"


def _places(where: str, values: Sequence[object], names: tuple[str, ...]) -> dict[object, int]:
    """Label (name or number) -> its place in the file's class names. Raises UserError for any other label."""
    places: dict[object, int] = {name: code for code, name in enumerate(names)}
    places |= {code: code for code in range(len(names))}
    strange = Counter(value for value in values if value not in places)
    if strange:
        told = listing(f"{value!r} ({num} rows)" for value, num in strange.items())
        raise UserError(
            f"{where} holds labels without a name: {told}",
            f"0 to {len(names) - 1}, for {listing(names)}",
            "remove these rows; -1 stands for images whose label is kept secret" if -1 in strange else "",
        )
    return places


def _ordered(
    where: str, texts: Sequence[str], class_ids: Sequence[object], names: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, notes): in the order of `class_ids` where each name has one number of its own from 0 to K - 1."""
    pairs = set(zip(texts, ("" if value is None else str(value).strip() for value in class_ids), strict=True))
    numbers = {str(number) for number in range(len(names))}
    if len(pairs) == len(names) and {number for _, number in pairs} == numbers:
        ordered = tuple(name for name, _ in sorted(pairs, key=lambda pair: int(pair[1])))
        return ordered, (f"{where}: classes in the order of class_id: {listing(ordered)}",)
    why = f"it does not number the {len(names)} labels one to one from 0 on"
    return names, (f"{where}: class_id is ignored: {why}",)


def find_label_columns(title: str, columns: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The columns of `--label-columns`, in upper or lower case. Raises one UserError for all that are missing."""
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    missing = [name for name in dict.fromkeys(wanted) if name.strip().lower() not in by_name]
    if missing:
        hints = dict.fromkeys(closest(name.strip().lower(), by_name) for name in missing)
        raise UserError(
            f"--label-columns: {title} has no column {listing(map(repr, missing))}",
            f"some of its columns: {listing(columns, 30)}",
            " ".join(hint for hint in hints if hint),
        )
    return tuple(dict.fromkeys(by_name[name.strip().lower()] for name in wanted))


def short_names(several: Sequence[Sequence[str]]) -> list[str]:
    """One name for each class of several names: the first, if that is no other's too; else all of them."""
    firsts = [names[0] for names in several]
    return [names[0] if firsts.count(names[0]) == 1 else ", ".join(names) for names in several]
