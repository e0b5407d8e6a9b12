"""A parent's best that is older than the state that its child goes on from: measured, and taken along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save

from warmstart.config.io import from_dict
from warmstart.config.schema import Config
from warmstart.console import log
from warmstart.engine.clock import Clock
from warmstart.engine.distributed import SOLO
from warmstart.engine.feed import Feed
from warmstart.engine.job import Job
from warmstart.engine.opening.open_inputs import build_model
from warmstart.engine.state import TrainState
from warmstart.inference.reference import WeightsReference
from warmstart.models.metadata import with_decision
from warmstart.run import layout, writer
from warmstart.run.reader import Run
from warmstart.tasks.classification import Classification


def val_outputs(job: Job, file: str | None) -> np.ndarray:
    """What the weights in `file`, or those that the job begins with, say of the job's val images."""
    module = job.built.module
    if file is not None:
        module = build_model(job.config, job.dataset.classes, WeightsReference(file), job.device).module
    # Without the other processes, and without features of frozen blocks, which are of other weights.
    alone = Feed(replace(job, world=SOLO, kept=()), Clock(), TrainState())
    return alone.outputs(module, job.dataset.splits["val"], "val")


def decides_alike(run: Run, config: Config) -> bool:
    """Whether a run decides between two classes by the settings of `config`."""
    before, now = from_dict(run.config).task, config.task
    return (before.positive, before.threshold) == (now.positive, now.threshold)


def copy_best(run: Run, best: int, job: Job) -> None:
    """The checkpoint and the rows of a run's best step, into the run of `job`.

    Where --positive or --threshold are others now, the copy answers by these, and of the rows only val's is taken,
    measured anew.
    """
    folder = run.checkpoint(best)
    names = [path.name for path in folder.iterdir() if path.name != layout.MANIFEST]
    files = {name: (folder / name).read_bytes() for name in sorted(names)}
    rows = [row for row in run.evals.rows if row["step"] == best and row.get("kind") != "evaluate"]
    if not decides_alike(run, job.config):
        files[layout.MODEL], metrics = _decided_anew(str(folder / layout.MODEL), job)
        rows = [row | metrics for row in map(_without_decision, rows) if row["split"] == "val"]
    writer.write_checkpoint(job.run, best, files)
    writer.mark_best(job.run, best)
    for row in rows:
        writer.append_row(job.run / layout.EVALS, {**row, "kind": "parent"})


def _without_decision(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in row.items() if not name.startswith("threshold") and "_at_" not in name
    }


def _decided_anew(file: str, job: Job) -> tuple[bytes, dict[str, float]]:
    """The weights with the decision that the settings of the job make, and the metrics on val, where there is one."""
    task = job.task
    metrics: dict[str, float] = {}
    assert isinstance(task, Classification), "the only task with such settings"
    if "val" in job.dataset.splits:
        outputs, targets = val_outputs(job, file), job.dataset.splits["val"].targets
        task = task.decided(outputs, targets)
        metrics = task.evaluate(outputs, targets)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    told = "the class of the higher score"
    if task.decision is not None and task.decision.threshold is not None:
        told = f"{task.decision.positive} from a score of {task.decision.threshold:.4f} on ({task.decision.origin})"
    log.warning(
        "--positive and --threshold are not the parent's: its best, taken along, answers with %s", told
    )
    return save(load_file(file), with_decision(metadata, task.decision)), metrics
