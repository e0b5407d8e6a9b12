"""Reading run directories, finished or in progress. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from warmstart.errors import UserError, closest, listing
from warmstart.run import layout
from warmstart.run.process import is_gone
from warmstart.run.rows import Rows, RunObject, read_rows
from warmstart.run.yaml_text import parsed

T = TypeVar("T", dict[str, Any], list[dict[str, Any]])


@dataclass(frozen=True)
class Run:
    """A run directory. Properties read their file on first use.

    `task` is the one of several as whose run it is seen: data, splits, rows and predictions are then of that task.
    """

    path: Path
    task: str | None = None

    def of_task(self, name: str) -> Run:
        return Run(self.path, name)

    @cached_property
    def tasks(self) -> tuple[dict[str, Any], ...]:
        """Of a run of several tasks: `name`, `kind`, `classes`, `trained`, `settings` of its data, and `source`.

        `source` is its number among `sources` in resolved.json; None: --data.
        """
        return tuple(_read_json(self.path / layout.RESOLVED).get("tasks", ()))

    @property
    def _own(self) -> dict[str, Any]:
        return next(entry for entry in self.tasks if entry["name"] == self.task)

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.path / layout.CONFIG
        try:
            content = parsed(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged: it is not the YAML that was written")
        return content if self.task is None else {**content, "data": self._own["settings"]}

    @cached_property
    def resolved(self) -> dict[str, Any]:
        resolved = _read_json(self.path / layout.RESOLVED)
        if resolved.get("format") != layout.FORMAT_VERSION:
            raise UserError(
                f"{self.path} has the run format {resolved.get('format')!r}",
                f"format {layout.FORMAT_VERSION}, which this version of warmstart reads",
            )
        if self.task is None or self._own["source"] is None:
            return resolved
        return {**resolved, "data": resolved["sources"][self._own["source"]]}

    @cached_property
    def plan(self) -> dict[str, Any]:
        return _read_json(self.path / layout.PLAN)

    @cached_property
    def status(self) -> dict[str, Any]:
        path = self.path / layout.STATUS
        status: dict[str, Any] = _read_json(path) if path.exists() else {"state": "unknown"}
        if status.get("state") == "running" and _is_gone(status):
            status = {**status, "state": "killed"}
        if self.task is not None and "unreadable" in status:  # images by TASK/ID
            found = {tuple(name.split("/", 1)): reason for name, reason in status["unreadable"].items()}
            own = {name: reason for (task, name), reason in found.items() if task == self.task}
            status = {**status, "unreadable": own}
        return status

    @property
    def unfinished(self) -> str | None:
        """What to say of a run that has not come to its end."""
        state = self.status.get("state")
        return None if state == "finished" else f"{self.path} is {state}: as far as it has come"

    @cached_property
    def gains(self) -> list[dict[str, Any]]:
        """What the run changed, per split, as measured after it; empty while it runs."""
        path = self.path / layout.GAINS
        return _read_list(path) if path.exists() else []

    @property
    def thresholds(self) -> dict[str, Any] | None:
        """Multi-label: `step`, `split` and `thresholds` by label, as chosen after training; None before."""
        path = self.path / layout.of_task(layout.THRESHOLDS, self.task)
        return _read_json(path) if path.exists() else None

    @cached_property
    def splits(self) -> dict[str, str]:
        """Split by id where this run or one before it divided the data; empty where they came divided."""
        if self.task is not None and self._own["source"] is not None:
            return self.source_splits(self._own["source"])
        return _read_splits(self.path / layout.SPLITS)

    @property
    def source_places(self) -> tuple[str, ...]:
        """Where the data sets beside the run's own lie; runs of earlier versions have none."""
        return tuple(source["path"] for source in self.resolved.get("sources", ()))

    @property
    def teachers(self) -> tuple[str, ...]:
        """Where the models lie whose answers the run learns."""
        return tuple(teacher["path"] for teacher in self.resolved.get("teachers", ()))

    def source_splits(self, number: int) -> dict[str, str]:
        """The same of another data set of the run, in the order of `sources` in resolved.json."""
        return _read_splits(self.path / layout.source_splits_name(number))

    @cached_property
    def metrics(self) -> Rows:
        return read_rows(self.path / layout.METRICS)

    @cached_property
    def evals(self) -> Rows:
        found = read_rows(self.path / layout.EVALS)
        if self.task is None:
            return found
        return Rows([row for row in found.rows if row.get("task") == self.task], found.num_damaged)

    def predictions(self, split: str, step: int) -> Path:
        return self.path / layout.PREDICTIONS / layout.predictions_name(split, step, self.task)

    def checkpoint_steps(self) -> list[int]:
        root = self.path / layout.CHECKPOINTS
        if not root.is_dir():
            return []
        return sorted(
            step for entry in root.iterdir() if (step := layout.checkpoint_step(entry.name)) is not None
        )

    def pointer(self, name: str) -> int | None:
        """The step that LAST or BEST names, or None."""
        path = self.path / layout.CHECKPOINTS / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        return layout.checkpoint_step(text.strip())

    def checkpoint(self, step: int) -> Path:
        return self.path / layout.CHECKPOINTS / layout.checkpoint_name(step)


def open_run(path: str | Path) -> Run:
    """The run directory at `path`.

    Raises:
        UserError: there is none.
    """
    folder = Path(path)
    if layout.is_run(folder):
        return Run(folder)
    siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    if not folder.exists():
        raise UserError(f"{path} does not exist", "a run directory", closest(folder.name, siblings))
    inside = (
        [entry.name for entry in sorted(folder.iterdir()) if layout.is_run(entry)] if folder.is_dir() else []
    )
    fix = (
        f"it holds the runs {listing(inside, 5)}: name one of them"
        if inside
        else "`warmstart runs` lists runs"
    )
    raise UserError(
        f"{path} is not a run directory", f"a folder with {layout.CONFIG} and {layout.RESOLVED}", fix
    )


def find_runs(folder: str | Path) -> list[Run]:
    """All runs directly below a folder, in the order of their names."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{folder} is not a folder", "a folder that holds run directories", "`warmstart runs FOLDER`"
        )
    return [Run(entry) for entry in sorted(root.iterdir()) if layout.is_run(entry)]


def split_reference(reference: str) -> tuple[Path, str | None]:
    """`RUN@step`, `RUN@best`, `RUN@last` or `RUN` -> (path, what stands after the @)."""
    path, at, step = reference.rpartition("@")
    if at and (step.isdecimal() or step in ("best", "last")):
        return Path(path), step
    return Path(reference), None


def model_file(reference: str) -> tuple[Run, int, Path]:
    """The run, the step and the intact model.safetensors that a reference names (default: best, else last).

    Raises:
        UserError: no such run or step, or the file is damaged.
    """
    path, at = split_reference(reference)
    run = open_run(path)
    steps = run.checkpoint_steps()
    if at is None or at in ("best", "last"):
        best, last = run.pointer(layout.BEST), run.pointer(layout.LAST)
        step = last if at == "last" or (at is None and best is None) else best
    else:
        step = int(at)
    if step is None or step not in steps:
        kept = listing(steps) if steps else "none yet"
        raise UserError(f"{path} has no checkpoint {at or 'to read'}", f"one of the steps kept: {kept}")
    damage = find_damage(run.checkpoint(step), (layout.MODEL,))
    if damage:
        raise UserError(
            f"the checkpoint of step {step} in {path} is damaged: {damage}",
            "an intact checkpoint",
            f"name another step: {listing(s for s in steps if s != step)}",
        )
    return run, step, run.checkpoint(step) / layout.MODEL


def find_damage(checkpoint: Path, names: tuple[str, ...] | None = None, by_hash: bool = True) -> str | None:
    """What is wrong with a checkpoint folder by its MANIFEST (else by sizes alone), or None if it is whole."""
    try:
        files = _read_json(checkpoint / layout.MANIFEST)["files"]
        manifest = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return f"{layout.MANIFEST} is missing or unreadable"
    for name in names or tuple(manifest):
        path = checkpoint / name
        if name not in manifest or not path.is_file():
            return f"{name} is missing"
        num_bytes, digest = manifest[name]
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {num_bytes}"
        if not by_hash:
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} does not have the contents it was written with"
    return None


def _is_gone(status: dict[str, Any]) -> bool:
    """Whether the process that wrote `running` is known to have ended (on this machine; elsewhere nobody knows)."""
    if status.get("host") != platform.node() or not isinstance(status.get("pid"), int):
        return False
    return is_gone(status["pid"], status.get("born"))


def _read_json(path: Path) -> dict[str, Any]:
    return _read(path, dict)


def _read_list(path: Path) -> list[dict[str, Any]]:
    return _read(path, list)


def _read(path: Path, kind: type[T]) -> T:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=RunObject)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged: it is not the JSON that was written")
    return content


def _read_splits(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != ["id", "split"] or any(len(row) != 2 for row in rows):
        raise UserError(f"{path} is damaged: it is not the table of ids and splits that was written")
    return dict(rows)
