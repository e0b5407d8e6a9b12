"""Where a run is written, and the file of weights for other programs."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from warmstart.config.places import short_name
from warmstart.config.schema import Config
from warmstart.console import log
from warmstart.engine.job import Job
from warmstart.errors import UserError, listing
from warmstart.inference.reference import recorded_thresholds, resolve_weights
from warmstart.models.adapters.files import MANIFEST, adapter_files, with_entries
from warmstart.models.adapters.plain import plain_state
from warmstart.models.metadata import model_entries, read_decision, threshold_entry, with_thresholds
from warmstart.models.tensor_file import TensorFile
from warmstart.run import layout, reader, writer


def run_folder(config: Config) -> Path:
    output = config.output
    if output.output_dir is not None:
        return Path(output.output_dir)
    model = config.model.name or Path(config.model.weights or "model").name.split("@")[0].split(".")[0]
    data = short_name(config.data.path or "data")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]  # runs are started in the same second
    # Of a folder (hf:FOLDER) its name, of smp:ARCH/ENCODER both.
    bare = Path(model[3:]).name if model.startswith("hf:") else model.split(":")[-1].replace("/", "-")
    name = output.name or f"{data}-{bare}-{stamp}"
    return Path(output.runs_dir) / name


def write_outputs(job: Job) -> None:
    """What a run that has come to its end writes beside its checkpoints."""
    if job.built.lora is not None:
        write_adapter(job)
    if job.config.output.save_as:
        save_as(job, Path(job.config.output.save_as))


def write_adapter(job: Job) -> None:
    """RUN/adapter: what a run with adapters has trained, of its best step, for peft and for `warmstart merge`.

    That is the adapters and the head: everything else is the base's, which the folder names by its hash.
    """
    assert job.built.lora is not None and job.built.base is not None, "a run without adapters"
    _, step, file = reader.model_file(str(job.run))
    state, head = load_file(file), job.built.blocks[-1]
    own = [name for name in (*head.parameters, *head.buffers) if name in state]
    with safe_open(file, framework="pt") as opened:
        entries = model_entries(opened.metadata())
    files = adapter_files(state, own, job.built.lora, entries, job.built.base)
    writer.write_folder(job.run / layout.ADAPTER, files)
    size, whole = sum(map(len, files.values())), file.stat().st_size
    log.info(
        "adapter of step %d written to %s: %.2f MB, %.2g %% of the model's %.1f MB",
        step,
        job.run / layout.ADAPTER,
        size / 1e6,
        100 * size / whole,
        whole / 1e6,
    )


def add_thresholds(path: Path) -> None:
    """Those that a run of labels has chosen on val, into its adapter folder and the file of --save-as."""
    run = reader.Run(path)
    if run.tasks and run.config["output"]["save_as"] is not None and any(path.glob(f"*.{layout.THRESHOLDS}")):
        log.warning(
            "the file of several tasks says each label is given from .5 on: %s has those chosen on val", path
        )
    found = recorded_thresholds(resolve_weights(str(path)), tuple(run.resolved["model"]["classes"]))
    if found is None:
        return
    if (path / layout.ADAPTER).is_dir():
        manifest = path / layout.ADAPTER / MANIFEST
        writer.write_whole(manifest, with_entries(manifest, threshold_entry(found)))
    if (target := run.config["output"]["save_as"]) is None:
        return
    _, _, file = reader.model_file(str(path))
    if Path(target).suffix != file.suffix:
        log.warning("its tensors do not say from which scores on each label is given: %s does", path)
    elif Path(target).is_file() and Path(target).read_bytes() == file.read_bytes():
        with safe_open(file, framework="pt") as opened:
            metadata = with_thresholds(opened.metadata(), found)
        writer.write_whole(Path(target), TensorFile(load_file(file), metadata))


def save_as(job: Job, target: Path) -> None:
    """The best weights: as .safetensors the run's own file, which describes itself; else tensors for plain PyTorch.

    Those are a bare state_dict with the source's key names, adapters merged.

    Raises:
        UserError: another file has come to stand there while the run was trained.
    """
    _, step, file = reader.model_file(str(job.run))
    describes_itself = target.suffix == file.suffix
    content = file.read_bytes() if describes_itself else _bare(job, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed right after this is resumed, and comes here again.
    if target.exists() and target.read_bytes() != content:
        raise UserError(
            f"--save-as {target} exists already, and is not this run's",
            "a new file",
            f"move it away, then `warmstart resume {job.run}`",
        )
    writer.write_whole(target, content)
    log.info("weights of step %d written to %s", step, target)
    if not describes_itself:
        _tell_what_it_lacks(job, file)


def _bare(job: Job, file: Path) -> bytes:
    content = io.BytesIO()
    saved = plain_state(file)  # sorted by name; other programs may rely on the order of the layers
    names = dict.fromkeys((*job.built.module.state_dict(), *saved))  # those of weights in 4 bits are others
    torch.save({name: saved[name] for name in names if name in saved}, content)
    return content.getvalue()


def _tell_what_it_lacks(job: Job, file: Path) -> None:
    """What no tensor says, and evaluation needs."""
    values = job.built.preprocessing
    log.info(
        "it holds tensors only; to read it here again: --model %s --image-size %dx%d --mean %s --std %s --crop-pct %g, "
        "and the classes in the order %s",
        job.built.name,
        *values.image_size,
        ",".join(f"{v:g}" for v in values.mean),
        ",".join(f"{v:g}" for v in values.std),
        values.crop_pct,
        listing(job.built.classes, 20),
    )
    if job.built.recipe is not None:
        log.warning(
            "that its layers are smaller than those of %s cannot be told from its tensors: warmstart needs %s for it",
            job.built.name,
            job.run,
        )
    if job.built.margin is not None:
        log.warning(
            "that its classifier is a %s head of scale %g cannot be told from its tensors: warmstart needs %s for it",
            job.built.margin.method,
            job.built.margin.eval_scale,
            job.run,
        )
    decision = read_decision(file)
    if decision is not None and decision.threshold is not None:
        log.warning(
            "its tensors do not say that it answers %s from a score of %.4f on (%s): --save-as NAME.safetensors does",
            decision.positive,
            decision.threshold,
            decision.origin,
        )
