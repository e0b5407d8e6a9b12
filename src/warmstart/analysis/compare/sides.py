"""What `compare` is asked about: runs at a step, read without torch, or files of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.config.mask_values import LABEL_LEAVES
from warmstart.errors import UserError, listing
from warmstart.records import RETAIN
from warmstart.run import layout, reader
from warmstart.run.reader import Run

if TYPE_CHECKING:
    from warmstart.config.schema import DataConfig

_KINDS = {"labels": "classification", "masks": "segmentation"}  # of a task among several


@dataclass(frozen=True)
class Side:
    """One model to compare: a run at a step, or (without a run) a file of weights. `reference` is what was given."""

    reference: str
    run: Run | None = None
    step: int | None = None

    @property
    def label(self) -> str:
        return self.reference if self.run is None else f"{self.run.path}@{self.step}"

    @property
    def key(self) -> str:
        """What it is called in the count of looks, wherever its folder lies now."""
        task = "" if self.run is None or self.run.task is None else f":{self.run.task}"
        return Path(self.reference).name if self.run is None else f"{self.run.path.name}@{self.step}{task}"

    @property
    def kind(self) -> str | None:
        """As resolved.json calls the task; None of a file."""
        if self.run is None:
            return None
        if self.run.task is None:
            return str(self.run.resolved["task"])
        own = next(task["kind"] for task in self.run.tasks if task["name"] == self.run.task)
        return _KINDS.get(own, own)

    @property
    def data(self) -> dict[str, Any]:
        """What the run recorded of its data; empty of a file."""
        return {} if self.run is None else self.run.resolved["data"]

    def row(self, split: str) -> dict[str, Any]:
        """What was measured of it on a split: by the run itself, else by the last evaluation; maybe empty."""
        rows = [] if self.run is None else self.run.evals.rows
        own = [row for row in rows if row["split"] == split and row["step"] == self.step]
        own = [row for row in own if self._of_task(row)]
        measured = [row for row in own if row.get("kind") != "evaluate"]
        return (measured or own or [{}])[-1]

    def validations(self, split: str = "val") -> list[dict[str, Any]]:
        """The run's own measurements of a split, in their order, one per step."""
        rows = [] if self.run is None else self.run.evals.rows
        own = [row for row in rows if row["split"] == split and row.get("kind") != "evaluate"]
        return list({row["step"]: row for row in own if self._of_task(row)}.values())

    def _of_task(self, row: dict[str, Any]) -> bool:
        return self.run is not None and row.get("task") == self.run.task

    def num_trained_on(self, ids: tuple[str, ...]) -> int:
        """How many of these samples the run has in its own train split, where it divided the data itself."""
        splits = {} if self.run is None else self.run.splits
        return sum(splits.get(name) == "train" for name in ids)

    @property
    def notes(self) -> list[str]:
        """What a reader should know: still in progress, or rows lost."""
        if self.run is None:
            return []
        found = [] if self.run.unfinished is None else [self.run.unfinished]
        if self.run.evals.num_damaged:
            found.append(f"{self.run.evals.num_damaged} damaged rows of {self.run.path} were skipped")
        return found


def told_data(sides: Sequence[Side], data: DataConfig | None, fingerprint: str) -> dict[str, Any]:
    """The data of a comparison, as its JSON keeps them: `path` and how `labels` are read where others were named than
    the runs' own, and the task among several."""
    task = next((side.run.task for side in sides if side.run is not None), None)
    told = (
        {} if data is None else data.model_dump(mode="json", include=data.model_fields_set & {*LABEL_LEAVES})
    )
    return {"path": data and data.path, "fingerprint": fingerprint, "labels": told, "task": task}


def open_side(reference: str, task: str | None = None) -> Side:
    """The run and step that a reference names (default: the best, else the last), or a file.

    The step needs no checkpoint that is still kept: its predictions may be.

    Raises:
        UserError: a run without checkpoints, of episodes, or of several tasks of which none is named.
    """
    path, at = reader.split_reference(reference)
    if not layout.is_run(path):
        return _open_other(reference, task)
    run = Run(path)
    if run.resolved.get("episodes") is not None:
        raise UserError(
            f"{reference} was learned from episodes: it is a start for new classes, and has none of its own",
            "runs with classes",
            "`warmstart show` has what it does in episodes",
        )
    names = [entry["name"] for entry in run.tasks]
    if names or task is not None:
        if task not in names:
            raise UserError(
                f"--task {task}: no such task in {path}" if task else f"{path} has several tasks",
                f"one of {listing(names)}" if names else "leave --task out: it is of one task",
                f"--task {names[0]}" if names else "",
            )
        run = run.of_task(str(task))
    best, last = run.pointer(layout.BEST), run.pointer(layout.LAST)
    step = last if at == "last" or (at is None and best is None) else best
    step = int(at) if at is not None and at.isdecimal() else step
    if step is None:
        raise UserError(f"{path} has no checkpoint yet", "a run that has validated once", "wait for it")
    return Side(reference, run, step)


def _open_other(reference: str, task: str | None) -> Side:
    """Other names of a run's step (RUN/checkpoints/step_00000500), the best run of a folder; else a file."""
    if reference.startswith("hf:"):
        return Side(reference)
    from warmstart.inference.reference import resolve_weights

    found = resolve_weights(reference)
    if found.run is not None:
        return open_side(f"{found.run.path}@{found.step}", task)
    if not Path(str(found.file)).expanduser().exists():
        reader.open_run(reference)  # says what is there instead
    return Side(reference)


def common_split(sides: list[Side], split: str | None) -> str | None:
    """The split to compare on: as asked, else test where every run has one, else val; None where no side is a run.

    Raises:
        UserError: a run without that split.
    """
    having = [set(side.data["sizes"]) for side in sides if side.run is not None]
    if split is None:
        shared = set.intersection(*having) if having else set()
        return next((name for name in ("test", "val", "train") if name in shared), None)
    for side in sides:
        known = side.data.get("sizes")
        if known is not None and split not in (*known, RETAIN):
            raise UserError(
                f"--split {split}: {side.label} has none", f"{listing(known)}", "name a split that all have"
            )
    return split
