"""A file of weights as a run on data, so that what compresses runs compresses files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from warmstart.config.compress_section import CompressConfig
from warmstart.config.io import from_dict, to_yaml
from warmstart.console import log
from warmstart.engine.announce import plan_record, write_tables
from warmstart.engine.opening.text_tower import keep_processor
from warmstart.engine.prepare import prepare
from warmstart.errors import UserError
from warmstart.models.build import metadata_for
from warmstart.models.tensor_file import TensorFile
from warmstart.models.weights import read_weights
from warmstart.run import layout, writer
from warmstart.run.reader import Run


def run_of_file(file: str, settings: CompressConfig, folder: Path, dry_run: bool) -> str:
    """The run directory `folder`, with the weights of the file and the splits of --data; written once.

    Raises:
        UserError: no data, or data of other classes than the file's; the run was made of a file with other contents.
    """
    if layout.is_run(folder):
        _check_same(file, folder)
        return str(folder)
    read_weights(file)  # raises where it is none
    if settings.data is None:
        raise UserError(
            f"{file} is no run, and brings no data to measure on", "--data DATA", "name the data it is for"
        )
    if dry_run:
        raise UserError("--dry-run of a file", "a run", f"warmstart evaluate {file} --data {settings.data}")
    config = from_dict(
        {
            "data": {"path": settings.data, "workers": settings.workers},
            "model": {"weights": file},
            "train": {"device": settings.device, "seed": settings.seed},
            "output": {"output_dir": str(folder)},
        }
    )
    prepared = prepare(config, {}, folder)
    job = prepared.job
    if job.built.head_change.kind != "kept":
        raise UserError(
            f"{file} has no classifier for the classes of {settings.data}: {job.built.head_change.reason}",
            "the data that it answers for",
            f"warmstart finetune --weights {file} --data {settings.data}, then compress that run",
        )
    log.warning("which images %s was trained on is not known: val and test may be among them", file)
    run = writer.create_run(folder)
    writer.write_text(run / layout.CONFIG, to_yaml(config, {}))
    writer.write_json(run / layout.PLAN, plan_record(job))
    write_tables(job)
    keep_processor(job)
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in job.built.module.state_dict().items()
    }
    writer.write_checkpoint(run, 0, {layout.MODEL: TensorFile(state, metadata_for(job.built))})
    writer.mark_best(run, 0)
    record = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **prepared.resolved}
    writer.write_status(run, "finished", step=0, best_step=0)
    writer.write_json(run / layout.RESOLVED, record)
    return str(run)


def _check_same(file: str, folder: Path) -> None:
    """A file that is gone is not asked for any more: the run has its weights."""
    made_of = Run(folder).resolved["model"]["source"]["sha256"]
    if Path(file).exists() and read_weights(file).sha256 != made_of:
        raise UserError(
            f"{folder.parents[1]} holds a compression of another model: {file} has changed since it began",
            f"the file with the sha256 {made_of}",
            "a new folder",
        )
