"""A blend as a run directory like any other: weights, record, rows, curve; and what people read of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from warmstart.analysis.blend_plot import plot_blend
from warmstart.analysis.evaluate import evaluate
from warmstart.config.io import from_dict, to_yaml
from warmstart.config.schema import OutputConfig
from warmstart.console import table
from warmstart.errors import listing
from warmstart.inference.restore import restore
from warmstart.methods.blend import Blended, Point
from warmstart.models.build import metadata_for
from warmstart.models.tensor_file import TensorFile
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.shown import Shown

_COPIED = (layout.SPLITS, layout.QUARANTINE)


@dataclass(frozen=True)
class BlendResult(Shown):
    """The run that was written, and what was measured on the way to it."""

    run: str
    blended: Blended

    def to_json(self) -> dict[str, Any]:
        return {"run": self.run, **_record(self.blended)}

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.run) / layout.BLEND]

    def text(self) -> str:
        found = self.blended
        point = found.points[found.chosen]
        has_retained = point.retained is not None
        head = ("weights", f"val {found.metric}", *(["retained"] if has_retained else []), "")
        rows = [
            (
                p.name,
                p.val[found.metric],
                *([p.retained[found.metric]] if p.retained is not None else []),
                "chosen" if p is point else "",
            )
            for p in found.points
        ]
        what = "alpha" if point.alpha is not None else "weights"
        lines = [
            _title(found),
            table("", head, rows),
            f"{what} {point.name} by the rule {found.rule}",
            *(
                f"{where}, {split}, against {other}: {change.change}"
                for where, split, other, change in found.changes
            ),
        ]
        if share := _share_kept(found):
            lines.append(share)
        if found.kept:
            lines.append(f"{listing(found.kept, 3)} are the tuned model's at every alpha")
        return "\n".join([*lines, "", f"run: {self.run}", f"look: warmstart show {self.run}"])


def _title(found: Blended) -> str:
    if found.start is None:
        return f"checkpoints of {found.tuned.label}, and their mean"
    return f"between {found.start} (0) and {found.tuned.label} (1)"


def _share_kept(found: Blended) -> str:
    """How much of what the tuned model had forgotten is back."""
    if found.start is None or found.points[0].retained is None or found.points[-1].retained is None:
        return ""
    chosen = found.points[found.chosen].retained
    assert chosen is not None
    start, tuned = found.points[0].retained[found.metric], found.points[-1].retained[found.metric]
    lost, back = start - tuned, chosen[found.metric] - tuned
    return (
        f"tuning moved {found.metric} on the retained data from {start:.4f} to {tuned:.4f}; "
        f"the blend has {chosen[found.metric]:.4f}"
        + (f", {back / lost:.0%} of the loss back" if lost > 0 else "")
    )


def write_blend(found: Blended, output_dir: str | None, workers: int) -> BlendResult:
    """Write the run directory, measure the chosen weights as `evaluate` does, and draw the curve.

    Raises:
        UserError: the folder is in use, or the disk is full.
    """
    parent = found.tuned.reference.run
    assert parent is not None
    run = writer.create_run(Path(output_dir) if output_dir else _free(parent.path))
    point = found.points[found.chosen]
    config = from_dict(parent.config).model_copy(
        update={"output": OutputConfig(pictures=found.tuned.has_pictures)}
    )
    writer.write_text(run / layout.CONFIG, to_yaml(config, {}))
    for name in _COPIED:
        if (parent.path / name).exists():
            writer.write_whole(run / name, (parent.path / name).read_bytes())
    writer.write_json(run / layout.PLAN, _plan(found))
    built = replace(found.tuned.built, decision=found.decision)
    files = {layout.MODEL: TensorFile(found.weights, metadata_for(built))}
    writer.write_checkpoint(run, 0, files)
    writer.mark_best(run, 0)
    row = {"step": 0, "epoch": 0.0}
    writer.append_row(run / layout.EVALS, row | {"split": "val", **point.val})
    if point.retained is not None:
        writer.append_row(run / layout.EVALS, row | {"split": "retain", **point.retained})
    writer.write_json(run / layout.RESOLVED, _resolved(found))
    writer.write_status(
        run, "finished", step=0, best_step=0, best_value=point.val[found.metric], select_by=found.metric
    )
    device = next(found.tuned.built.module.parameters()).device
    written = restore(str(run), device)
    evaluate(written, split="val", workers=workers, choose_thresholds=True)
    if "test" in parent.resolved["data"]["sizes"]:
        result = evaluate(written, split="test", workers=workers)
        if written.has_pictures:
            result.draw()
    if written.has_pictures:
        plot_blend(_points(found.points, found.metric), found.chosen, found.metric, run / layout.BLEND)
    return BlendResult(str(run), found)


def _free(parent: Path) -> Path:
    """NAME-blend beside the tuned run, or the next free number."""
    first = parent.with_name(f"{parent.name}-blend")
    others = (parent.with_name(f"{first.name}-{number}") for number in range(2, 10_000))
    return next(path for path in (first, *others) if not path.exists())


def _points(points: list[Point], metric: str) -> list[dict[str, Any]]:
    return [
        {
            "name": point.name,
            "alpha": point.alpha,
            "val": point.val[metric],
            "retained": None if point.retained is None else point.retained[metric],
        }
        for point in points
    ]


def _record(found: Blended) -> dict[str, Any]:
    return finite(
        {
            "start": found.start,
            "tuned": found.tuned.label,
            "rule": found.rule,
            "metric": found.metric,
            "chosen": found.points[found.chosen].name,
            "kept": found.kept,
            "points": _points(found.points, found.metric),
            "changes": [
                {"data": where, "split": split, "against": other, **vars(change)}
                for where, split, other, change in found.changes
            ],
        }
    )


def _plan(found: Blended) -> dict[str, Any]:
    parent = found.tuned.reference.run
    assert parent is not None
    untrained = {"mode": "blend", "lr": 0.0, "rates": [], "trainable": [], "from_stage": 0, "from_step": 0}
    untrained["num_trainable"] = 0
    own = {name for block in found.tuned.built.blocks for name in block.parameters}  # without merged adapters
    rows = [
        {**row, **untrained, "held": [name for name in (*row["trainable"], *row["held"]) if name in own]}
        for row in parent.plan["rows"]
    ]
    return {"rows": rows, "stages": [], "notes": [_title(found)]}


def _resolved(found: Blended) -> dict[str, Any]:
    parent = found.tuned.reference.run
    assert parent is not None
    old = parent.resolved
    source = {"kind": "blend", "path": found.tuned.label, "sha256": None}
    return {
        **old,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": {"run": str(parent.path), "step": found.tuned.reference.step, "lr": old["lr"]},
        "model": {**old["model"], "source": source, "lora": None},
        "pace": {**old["pace"], "total_steps": 0, "first_step": 0},
        "blend": _record(found),
    }
