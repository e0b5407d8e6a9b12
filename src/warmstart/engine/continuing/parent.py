"""The parent of a run that continues another one: what it is, what a child inherits, and what the child must beat."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.adapt.lora import check_kept
from warmstart.config import rules
from warmstart.config.io import Layer, from_dict
from warmstart.config.mix_rules import at_places
from warmstart.config.places import absolute
from warmstart.config.schema import Config, leaves
from warmstart.console import log
from warmstart.engine.beginning import check_stopped
from warmstart.engine.checkpoint import Saved, load_checkpoint, load_step
from warmstart.engine.continuing.foreign import Foreign, read_foreign
from warmstart.engine.continuing.older_best import decides_alike, val_outputs
from warmstart.engine.continuing.same_data import is_same_split, trains_on_same
from warmstart.engine.job import Bar
from warmstart.engine.prepare import Prepared
from warmstart.errors import UserError, closest, listing
from warmstart.inference.reference import at_step, resolve_weights
from warmstart.models.zoo import disagreements
from warmstart.run import layout, reader
from warmstart.run.reader import Run

KEEPS = ("all", "optimizer", "weights")
ALL, OPTIMIZER, WEIGHTS = KEEPS
OWN_PLACES = ("output.output_dir", "output.name", "output.save_as")
_PROMPTS = "text.prompts"  # which the parent's weights state
# Recorded as absolute paths.
_PLACES = ("data.path", "data.mix", "retain.path", "model.name", "distill.teacher")


@dataclass(frozen=True)
class Parent:
    """A step of one of our runs, or a checkpoint of another program, and what a child keeps of it."""

    name: str  # RUN@step, or the file
    keep: str
    settings: Layer  # that the child inherits
    run: Run | None = None
    step: int | None = None
    saved: Saved | None = None  # where more than weights is kept
    foreign: Foreign | None = None

    @property
    def best_step(self) -> int | None:
        return None if self.run is None else self.run.pointer(layout.BEST)


def find_parent(reference: str, keep: str) -> Parent:
    """What `reference` names, with the state to keep: where no step is named, of the best for weights, else the last.

    Raises:
        UserError: there is no such thing, it is still running, or its checkpoint is gone or damaged.
    """
    if keep not in KEEPS:
        raise UserError(f"--keep {keep}", f"one of {listing(KEEPS)}", closest(keep, KEEPS))
    reference = at_step(reference)
    path, at = reader.split_reference(reference)
    if layout.is_run(path):
        if Run(path).tasks:
            raise UserError(
                f"{path} is a run of several tasks, which is not continued",
                "a run of one task",
                f"`warmstart multitask --weights {path} --data DATA ...` starts from its weights and heads",
            )
        check_stopped(Run(path))
        if keep != WEIGHTS:
            return _with_state(path, at, keep)
    found = resolve_weights(reference)
    if found.run is None:
        assert found.file is not None, "a reference is named"
        if not Path(found.file).exists() and not glob(found.file):  # noqa: PTH207 (absolute patterns)
            raise rules.missing_path("the parent", found.file)
        foreign = read_foreign(found.file)
        file = str(foreign.file.path)
        settings = {**foreign.settings, "model.weights": file}
        return Parent(file, keep, Layer("parent", settings), foreign=foreign)
    check_stopped(found.run)
    if keep != WEIGHTS:  # of a folder of runs, the best one
        return _with_state(found.run.path, None, keep)
    assert found.step is not None, "a run is named with a step"
    return _of_run(found.run, found.step, keep)


def _with_state(path: Path, at: str | None, keep: str) -> Parent:
    run = reader.open_run(path)
    for kind, what in (("blend", "is a blend"), ("compress", "was made smaller")):
        if kind in run.resolved:
            raise UserError(f"--keep {keep}: {path} {what}, without optimizer state", "--keep weights")
    if at in (None, "last"):
        step, saved = load_checkpoint(run.path)
    else:
        _, step, _ = reader.model_file(f"{path}@{at}")
        saved = load_step(run, step)
    return _of_run(run, step, keep, saved)


def _of_run(run: Run, step: int, keep: str, saved: Saved | None = None) -> Parent:
    name, resolved = f"{run.path}@{step}", run.resolved
    # The folder of the data may have been given relative to another working directory.
    values = inherited(at_places(from_dict(run.config), run.source_places)) | {
        "data.path": resolved["data"]["path"],
        "model.name": resolved["model"]["name"],
        "model.weights": name,
    }
    values |= {"distill.teacher": run.teachers} if run.teachers else {}
    return Parent(name, keep, Layer("parent", values), run, step, saved)


def inherited(config: Config) -> dict[str, Any]:
    """What a child takes over of its parent's settings, by path."""
    defaults = by_path(Config())
    return {
        path: value
        for path, value in by_path(config).items()
        if value != defaults[path] and path not in (*OWN_PLACES, _PROMPTS)
    }


def by_path(config: Config) -> dict[str, Any]:
    """Every setting as it is written to YAML."""
    dumped = config.model_dump(mode="json")
    return {leaf.path: dumped[leaf.section][leaf.name] for leaf in leaves()}


def changes(parent: Parent, config: Config, origins: dict[str, str]) -> list[dict[str, Any]]:
    """The settings that are others than the parent's: `setting`, `old`, `new` and `origin`."""
    now = by_path(config)
    now["data.path"] = absolute(now["data.path"])
    if parent.run is None:  # only what was given is known to be another thing than before
        given = [path for path, origin in origins.items() if origin != "parent"]
        old = {path: parent.settings.values.get(path, "not recorded") for path in now}
        differing = [path for path in given if now[path] != old[path]]
    else:
        old = by_path(from_dict(parent.run.config))
        old |= {path: parent.settings.values[path] for path in _PLACES if path in parent.settings.values}
        old[_PROMPTS] = old[_PROMPTS] or "those of its weights"
        differing = [path for path in now if now[path] != old[path]]
    return [
        {"setting": path, "old": old[path], "new": now[path], "origin": origins.get(path, "default")}
        for path in differing
        if path not in (*OWN_PLACES, "model.weights") and (path != _PROMPTS or path in origins)
    ]


def contradictions(
    parent: Parent, where: str, model: str | None, optimizer: str | None, config: Config
) -> list[UserError]:
    """Settings against the parent's: `where` it is, its model, and the optimizer whose state is kept (None: none)."""
    found = []
    if config.model.weights != parent.name:
        found.append(
            UserError(
                f"weights {config.model.weights} beside the parent {parent.name}", "the parent's own weights"
            )
        )
    asked = config.model.name or ""
    if model is not None and disagreements(asked, model):
        found.append(
            UserError(
                f"--model {asked}, and {where} is a {model}",
                "the parent's architecture",
                f"another one starts from its own weights: `warmstart finetune --model {asked}`",
            )
        )
    if optimizer is not None and optimizer.lower() != config.optim.optimizer.lower():
        found.append(
            UserError(
                f"--keep {parent.keep} keeps the state of {optimizer}, and --optimizer is {config.optim.optimizer}",
                f"--optimizer {optimizer}",
                "--keep weights begins with another one",
            )
        )
    return found


def check_config(parent: Parent, config: Config) -> None:
    """Raise one UserError for all settings that contradict the parent or what is to be kept of it."""
    run, state = parent.run, parent.saved.state if parent.saved is not None else None
    model = None if run is None else run.resolved["model"]["name"]
    optimizer = None if run is None or state is None else run.config["optim"]["optimizer"]
    found = contradictions(parent, parent.name if run is None else str(run.path), model, optimizer, config)
    if run is not None and state is not None:
        patience = config.train.patience
        if parent.keep == ALL and patience is not None and state.num_bad >= patience:
            found.append(
                UserError(
                    f"--keep all keeps the count of {state.num_bad} validations without a new best, "
                    f"and --patience is {patience}",
                    f"--patience above {state.num_bad}",
                    f"--patience {state.num_bad + patience}, --patience none, or --keep weights, which counts from 0",
                )
            )
    if found:
        raise UserError.of_problems(found, "the settings")


def check_same(parent: Parent, prepared: Prepared) -> None:
    """UserError unless data, classes and model are such that this is still the parent's run."""
    job = prepared.job
    fix = "other classes are another task: `warmstart finetune` keeps the rows of classes with the same name"
    change = job.built.head_change
    if parent.run is None:
        if change.kind != "kept":
            raise UserError(
                f"the classifier of {parent.name} does not fit these classes: {change.reason}",
                "the same classes",
                fix,
            )
        return
    recorded = parent.run.resolved
    if recorded["task"] != job.task.name:
        raise UserError(
            f"{parent.run.path} is of the task {recorded['task']}, these data of {job.task.name}", fix=fix
        )
    # With --mix-classes union the model has more than --data, whose classes alone were recorded at first.
    old, new = recorded["model"].get("classes", recorded["data"]["classes"]), list(job.dataset.classes)
    if job.config.meta.is_on:  # the model's are places in an episode
        old, new = [*recorded["data"]["classes"], *old], [*new, *job.built.classes]
    if old != new:
        gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
        raise UserError(
            f"{parent.run.path} knows {len(old)} classes and these data have {len(new)}: "
            f"not here {listing(gone) or 'none'}; new {listing(added) or 'none'}",
            "the parent's classes in their order",
            fix,
        )
    if parent.keep == ALL and not trains_on_same(parent.run, prepared):
        raise UserError(
            f"--keep all keeps the place in the order of the training images, and these are others than those of "
            f"{parent.run.path}",
            "the parent's data, and what is mixed in, unchanged",
            "--keep optimizer, or --keep weights",
        )
    if parent.saved is not None:
        check_kept(recorded["model"].get("lora"), job.built.lora, f"--keep {parent.keep}: {parent.name}")
    if parent.saved is not None and change.kind != "kept":
        happened = f"--keep {parent.keep}: the classifier of {parent.name} cannot be kept: {change.reason}"
        raise UserError(happened, "the parent's --margin-method", "--keep weights, with a new classifier")
    if parent.saved is not None:
        shapes = {name: tensor.shape for name, tensor in job.built.module.state_dict().items()}
        other = [name for name, tensor in parent.saved.weights.items() if shapes.get(name) != tensor.shape]
        if other:
            raise UserError(
                f"--keep {parent.keep}: {listing(other, 3)} have other shapes now than the state of {parent.name}",
                "the parent's --image-size",
                "--keep weights, which resamples them",
            )


def find_bar(parent: Parent, prepared: Prepared) -> Bar | None:
    """The parent's best on the child's val. None without val.

    Measured where val or preprocessing are others, and for the metric of batches where their size is.
    """
    job, run = prepared.job, parent.run
    if "val" not in job.dataset.splits:
        return None
    best = parent.best_step
    name, step = (
        (parent.name, None) if run is None else (str(run.path), parent.step if best is None else best)
    )
    if run is not None and _is_measured_alike(run, prepared):
        rows = [row for row in run.evals.rows if row["split"] == "val" and row["step"] == best]
        value = rows[0].get(job.select_by) if rows else None
        if value is not None:
            return Bar(name, best, job.select_by, value, "recorded")
        own = Bar.recorded(run.resolved)
        if best is None and own is not None and own.metric == job.select_by:
            return own  # the parent has not beaten its own parent
    file = None if best in (None, parent.step) or run is None else str(run.checkpoint(best) / layout.MODEL)
    value = float(job.task.evaluate(val_outputs(job, file), job.dataset.splits["val"].targets)[job.select_by])
    log.info("the bar: %s %.4f of %s, measured on this run's val", job.select_by, value, name)
    if not np.isfinite(value):
        raise UserError(f"val {job.select_by} of {name} is not finite", "a parent that can be measured")
    return Bar(name, step, job.select_by, value, "measured on this run's val")


def _is_measured_alike(run: Run, prepared: Prepared) -> bool:
    used = json.loads(json.dumps(asdict(prepared.job.built.preprocessing)))
    same = run.resolved["model"]["preprocessing"] == used
    return (
        same
        and is_same_split(run.resolved, prepared.resolved, "val")
        and ("positive" not in prepared.job.select_by or decides_alike(run, prepared.job.config))
        and (
            prepared.job.select_by != "fscore_per_batch"
            or run.config["data"]["batch_size"] == prepared.job.config.data.batch_size
        )
    )
