"""Which columns of a table are labels, splits, groups and texts, and what their cells say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from warmstart.data.columns import find_column
from warmstart.data.labels import Labels, find_label_columns, group_codes, read_label_columns, read_labels
from warmstart.errors import UserError, closest, listing


@dataclass(frozen=True)
class Roles:
    """Which column is what, apart from the images. `labels` is one column, or several of 0 and 1."""

    labels: tuple[str, ...]
    as_columns: bool
    split: str | None
    group: str | None
    class_number: str | None  # beside text labels, for their order
    caption: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        return tuple(filter(None, (*self.labels, self.split, self.group, self.class_number, self.caption)))


def find_roles(
    title: str,
    columns: Sequence[str],
    label: str | None,
    group: str | None,
    label_columns: Sequence[str],
    caption: str | None = None,
) -> Roles:
    """The roles of `columns`; `label` is the one column of labels, None where `label_columns` are given.

    A column called group is used without being asked for. Raises UserError for a name that is no column.
    """
    labels = (label,) if label is not None else find_label_columns(title, columns, label_columns)
    left = [column for column in columns if column not in labels]
    group = _asked(title, columns, "group", group) or find_column(left, "group")
    caption = _asked(title, columns, "text.captions", caption)
    number = find_column(left, "class number") if label is not None else None
    return Roles(labels, label is None, find_column(left, "split"), group, number, caption)


def _asked(title: str, columns: Sequence[str], flag: str, name: str | None) -> str | None:
    """The column that a setting names."""
    found = find_column(columns, "", (name.strip().lower(),)) if name else None
    if name and found is None:
        raise UserError(
            f"--{flag} {name}: {title} has no such column; its columns are {listing(columns, 30)}",
            "a column"
            + (", or a pattern over the ids with (parentheses) around the group" * (flag == "group")),
            closest(name, columns),
        )
    return found


def labels_of(
    title: str, roles: Roles, cells: Mapping[str, Sequence[object]], names: tuple[str, ...] | None = None
) -> Labels:
    """The labels in the cells of the columns, by name; `names` are the file's own class names."""
    if roles.as_columns:
        return read_label_columns(title, {name: cells[name] for name in roles.labels})
    numbers = cells[roles.class_number] if roles.class_number is not None else None
    return read_labels(f"{title}: the column {roles.labels[0]}", cells[roles.labels[0]], names, numbers)


def groups_of(
    title: str, roles: Roles, cells: Mapping[str, Sequence[object]]
) -> tuple[np.ndarray | None, list[str]]:
    """int64 (N,) with the note on them, or None without a column of groups."""
    if roles.group is None:
        return None, []
    codes = group_codes(cells[roles.group])
    return codes, [f"{title}: {len(np.unique(codes))} groups by the column {roles.group}"]
