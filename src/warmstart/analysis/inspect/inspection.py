"""`warmstart inspect`: what is in a checkpoint, and what differs between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from warmstart.analysis.inspect.blocks import BlockChange, BlockRow, Shapes, block_changes, block_rows
from warmstart.analysis.inspect.contents import Contents, read_contents
from warmstart.analysis.inspect.health import warnings_of
from warmstart.console import table
from warmstart.errors import listing
from warmstart.shown import METRICS, Shown

_MOST_ROWS = 40
_NUM_NAMED = 5


@dataclass(frozen=True)
class Inspection(Shown):
    """One checkpoint. `notes` say what was done to get at its tensors, `warnings` what looks wrong in them."""

    contents: Contents
    blocks: list[BlockRow]
    warnings: list[str]

    @property
    def label(self) -> str:
        run, step = self.contents.reference.run, self.contents.reference.step
        return str(self.contents.file.path) if run is None else f"{run.path}@{step}"

    @property
    def num_parameters(self) -> int:
        return sum(row.num_parameters for row in self.blocks)

    @property
    def dtypes(self) -> dict[str, int]:
        """Tensors by type, as they are computed with; the notes say what they were in the file."""
        return dict(Counter(str(t.dtype).removeprefix("torch.") for t in self.contents.tensors.values()))

    def to_json(self) -> dict[str, Any]:
        found, file = self.contents, self.contents.file
        return {
            "file": str(file.path),
            "bytes": file.path.stat().st_size,
            "sha256": file.sha256,
            "run": None if found.reference.run is None else str(found.reference.run.path),
            "step": found.step,
            "epochs": found.epochs,
            "metrics": found.metrics,
            "architecture": file.arch,
            "classes": None if file.classes is None else list(file.classes),
            "preprocessing": file.preprocessing,
            "adapters": None if file.lora is None else asdict(file.lora),
            "edits": [] if file.recipe is None else [edit.kind for edit in file.recipe.edits],
            "num_parameters": self.num_parameters,
            "dtypes": self.dtypes,
            "blocks": [row.to_json() for row in self.blocks],
            "optimizer": found.optimizer,
            "scheduler": found.scheduler,
            "config": found.config,
            "lineage": list(found.lineage),
            "licence": found.licence,
            "notes": list(file.notes),
            "warnings": self.warnings,
        }

    def text(self) -> str:
        found, file = self.contents, self.contents.file
        stated = "not recognised: --model NAME says it where it is needed" if file.arch is None else file.arch
        classes = "not named" if file.classes is None else f"{len(file.classes)}: {listing(file.classes, 8)}"
        lines = [
            f"{self.label}: {file.path.stat().st_size / 1e6:.1f} MB, {self.num_parameters:,} parameters",
            *(f"WARNING: {warning}" for warning in self.warnings),
            f"epoch         {_epoch(found)}",
            f"metrics       {_metrics(found.metrics)}",
            f"architecture  {stated}",
            f"classes       {classes}",
            f"input         {_pairs(file.preprocessing)}",
            *(
                []
                if file.recipe is None
                else [f"made smaller  {', '.join(e.kind for e in file.recipe.edits)}"]
            ),
            *([] if file.lora is None else [f"adapters      {_pairs(asdict(file.lora))}"]),
            f"dtypes        {_pairs(self.dtypes)}",
            f"optimizer     {_pairs(found.optimizer)}",
            f"scheduler     {_pairs(found.scheduler)}",
            f"config        {_pairs(found.config)}",
            f"made from     {' <- '.join(found.lineage) or 'not recorded'}",
            f"licence       {found.licence or 'not recorded'}",
            *(f"note: {note}" for note in file.notes),
            "",
            self._block_table(),
        ]
        return "\n".join(lines)

    def _block_table(self) -> str:
        rows = [
            (r.name, r.num_tensors, f"{r.num_parameters:,}", r.rms, None if not r.zeros else f"{r.zeros:.1%}")
            for r in self.blocks
        ]
        return table(*_shortened("blocks", rows, ("block", "tensors", "parameters", "rms", "zeros")))


@dataclass(frozen=True)
class FileDifference(Shown):
    """Two checkpoints, and what differs from the first to the second."""

    first: Inspection
    second: Inspection
    blocks: list[BlockChange]
    shapes: Shapes

    @property
    def is_equal(self) -> bool:
        """Whether all tensors are the same to the bit."""
        same = all(row.num_equal == row.num_tensors for row in self.blocks)
        return same and not (self.shapes.missing or self.shapes.new or self.shapes.reshaped)

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "equal": self.is_equal,
            "blocks": [row.to_json() for row in self.blocks],
            "missing": list(self.shapes.missing),
            "new": list(self.shapes.new),
            "reshaped": [
                {"name": name, "first": list(one), "second": list(other)}
                for name, one, other in self.shapes.reshaped
            ],
        }

    @property
    def verdict(self) -> str:
        if self.is_equal:
            return "the tensors are equal to the bit"
        changed = [row for row in self.blocks if row.num_equal < row.num_tensors]
        most = max(changed, key=lambda row: row.relative or 0.0, default=None)
        told = (
            ""
            if most is None or most.relative is None
            else f", most of all {most.name} (by {most.relative:.2%})"
        )
        return f"{len(changed)} of {len(self.blocks)} common blocks differ{told}"

    def text(self) -> str:
        shapes = self.shapes
        lines = [
            self.verdict,
            *(
                f"{name}  {one.label}: epoch {_epoch(one.contents)}, {one.num_parameters:,} parameters, "
                f"{one.contents.file.arch or 'architecture not recognised'}"
                for name, one in (("A", self.first), ("B", self.second))
            ),
            *(
                f"WARNING: {name}: {warning}"
                for name, one in (("A", self.first), ("B", self.second))
                for warning in one.warnings
            ),
        ]
        for word, names in (("only in A", shapes.missing), ("only in B", shapes.new)):
            if names:
                lines.append(f"{word}: {len(names)} tensors: {listing(names, _NUM_NAMED)}")
        if shapes.reshaped:
            told = (f"{name} {one} -> {other}" for name, one, other in shapes.reshaped)
            lines.append(f"of another shape: {listing(told, _NUM_NAMED)}")
        rows = [
            (
                row.name,
                f"{row.num_equal} of {row.num_tensors}",
                None if row.relative is None else f"{row.relative:.3%}",
                None if row.cosine is None else f"{row.cosine:.6f}",
                row.largest,
            )
            for row in self.blocks
        ]
        head = ("block", "equal tensors", "relative change", "cosine", "largest change")
        return "\n".join([*lines, "", table(*_shortened("from A to B", rows, head))])


def inspect(reference: str) -> Inspection:
    """What is in a run's checkpoint or a file. UserError: there is none, or it cannot be read."""
    found = read_contents(reference)
    return Inspection(found, block_rows(found.tensors), warnings_of(found.raw, found.averaged))


def inspect_two(first: str, second: str) -> FileDifference:
    """What differs between two of them."""
    one, other = inspect(first), inspect(second)
    states = one.contents.tensors, other.contents.tensors
    return FileDifference(one, other, block_changes(*states), Shapes.of(*states))


def _epoch(found: Contents) -> str:
    step = "" if found.step is None else f"step {found.step}"
    if found.epochs is None:
        return step or "not recorded"
    return f"{found.epochs:g}{f' ({step})' if step else ''}"


def _metrics(values: Mapping[str, float]) -> str:
    """The usual ones first."""
    order = {name: place for place, name in enumerate(METRICS)}
    names = sorted(values, key=lambda name: order.get(name.rpartition(" ")[2], len(order)))
    return listing((f"{name} {values[name]:.6g}" for name in names), 8) or "none recorded"


def _pairs(values: Mapping[str, Any]) -> str:
    told = (
        f"{key} {value}" for key, value in values.items() if value is not None and value != {} and value != []
    )
    return listing((part if len(part) < 160 else f"{part[:157]}..." for part in told), 8) or "none recorded"


def _shortened(title: str, rows: list[Any], head: tuple[str, ...]) -> tuple[str, tuple[str, ...], list[Any]]:
    """The first and last rows of a long table, and how many are left out."""
    if len(rows) <= _MOST_ROWS:
        return title, head, rows
    half = _MOST_ROWS // 2
    return (
        f"{title} ({len(rows) - _MOST_ROWS} in the middle left out; --json has all)",
        head,
        [*rows[:half], *rows[-half:]],
    )
