"""What `--weights` and the model argument of evaluate and predict may name: files, runs, or RUN@step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import log
from warmstart.errors import UserError, listing
from warmstart.models.choose import Score, check_path, checkpoints_in, choose, matches
from warmstart.models.image_text.prompts import LINEAR, split_head
from warmstart.models.objects import keep
from warmstart.records import Thresholds
from warmstart.run import layout, reader
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run

# As other programs call their checkpoints: by the step, or by the epoch (document 004).
_BY_STEP, _BY_EPOCH = re.compile(r"checkpoint-(\d+|best|last)"), re.compile(r"checkpoint-epoch-(\d+)")


@dataclass(frozen=True)
class WeightsReference:
    """The file to read, and the run and step it belongs to where it is one of ours."""

    file: str | None
    run: Run | None = None
    step: int | None = None


def resolve_weights(reference: str | None) -> WeightsReference:
    """What a reference names: one of our runs at a step (default: the best), or a file as it is.

    Raises:
        UserError: a run without the step named, or with a damaged checkpoint.
    """
    if reference is None or reference == "none":
        return WeightsReference(None)
    reference = at_step(reference)
    path, at = reader.split_reference(reference)
    if at is None and not path.is_file() and not layout.is_run(path):
        reference = _among_runs(reference, path)
        path, _ = reader.split_reference(reference)
    if layout.is_run(path):
        run, step, file = reader.model_file(reference)
        return WeightsReference(str(file), run, step)
    return WeightsReference(reference)


def own_start(run: Run) -> str:
    """What the run was started from: a reference or hf:FOLDER.

    Raises:
        UserError: weights that lie in no file, of a zoo or random.
    """
    parent, source = run.resolved["parent"], run.resolved["model"]["source"]
    if parent is not None:
        return reference_of(parent)
    if source["kind"] == "file":
        return str(source["path"])
    name = str(run.resolved["model"]["name"])
    if source["kind"] == "pretrained" and name.startswith("hf:") and split_head(name)[1] != LINEAR:
        return name
    raise UserError(
        f"{run.path} was started from {source['kind']} weights", "START TUNED", "name the start model first"
    )


def recorded_thresholds(reference: WeightsReference, classes: tuple[str, ...]) -> Thresholds | None:
    """Those of a multi-label run's labels, where it has chosen them for these weights."""
    found = None if reference.run is None else reference.run.thresholds
    if found is None or found["step"] != reference.step:
        return None
    return Thresholds(tuple(found["thresholds"][name] for name in classes))


def processor_of(run: Run | None) -> Path | None:
    """The folder where a run keeps the tokenizer of its model, if it does."""
    folder = None if run is None else run.path / layout.PROCESSOR
    return folder if folder is not None and folder.is_dir() else None


def keep_module(
    module: object, reference: str | None = None, image_size: tuple[int, int] | None = None
) -> str:
    """Keep a copy of a Python object for this process and return its name, `object:ClassName-DIGEST`.

    Its layers are looked at with `image_size`, else with that of the run that `reference` names.
    UserError: see `models.objects.keep`.
    """
    path = None if reference is None else reader.split_reference(at_step(reference))[0]
    if image_size is None and path is not None and layout.is_run(path):
        height, width = Run(path).resolved["model"]["preprocessing"]["image_size"]
        image_size = height, width
    return keep(module, image_size)


def at_step(reference: str) -> str:
    """RUN@step for what lies in one of our runs (RUN/checkpoints/step_..., the weights in it), and for the names that
    it would have elsewhere: RUN/checkpoint-500, RUN/checkpoint-epoch-20. Anything else as it is.

    Raises:
        UserError: the run keeps no checkpoint of that epoch.
    """
    path, at = reader.split_reference(reference)
    check_path(path)
    if at is not None:
        return reference
    whole = path if len(path.parents) > 2 else path.absolute()  # the run may be the working directory
    folder = whole.parent if path.name == layout.MODEL and path.is_file() else whole
    step, run = layout.checkpoint_step(folder.name), folder.parent.parent
    if step is not None and folder.parent.name == layout.CHECKPOINTS and layout.is_run(run):
        return f"{run}@{step}"
    if path.exists() or not layout.is_run(path.parent):
        return reference
    if found := _BY_STEP.fullmatch(path.name):
        return f"{path.parent}@{found[1]}"
    by_epoch = _BY_EPOCH.fullmatch(path.name)
    return reference if by_epoch is None else f"{path.parent}@{_step_of(Run(path.parent), int(by_epoch[1]))}"


def _step_of(run: Run, epoch: int) -> int:
    """The kept step at which an epoch, counted from 1, had ended."""
    per_epoch, steps = run.resolved.get("pace", {}).get("steps_per_epoch"), run.checkpoint_steps()
    if per_epoch is None:
        raise UserError(f"{run.path} was not trained, and has no epochs", f"{run.path} without an epoch")
    if epoch * per_epoch in steps:
        return epoch * per_epoch
    best = run.pointer(layout.BEST)
    kept = (f"{s / per_epoch:g} (step {s}{', the best' if s == best else ''})" for s in steps)
    raise UserError(
        f"{run.path} keeps no checkpoint of epoch {epoch}",
        f"one of the epochs {listing(kept) or 'kept: none yet'}",
        f"{run.path} is its best; a run with more --keep-checkpoints keeps more",
    )


def _among_runs(reference: str, path: Path) -> str:
    """The best of the runs in a folder, or of those that a glob matches; the reference as it is without runs."""
    found = (
        checkpoints_in(path) + [run.path for run in reader.find_runs(path)]
        if path.is_dir()
        else matches(reference)
    )
    runs = [candidate for candidate in found if layout.is_run(candidate)]
    if not runs:
        return reference
    known = {run: score for run in runs if (score := _score(Run(run))) is not None}
    choice = choose(found, reference, known)
    for note in choice.notes:
        log.info("weights: %s", note)
    return str(choice.path)


def _score(run: Run) -> Score | None:
    """The validation metric of a run's best checkpoint."""
    value, metric = run.status.get("best_value"), str(run.status.get("select_by"))
    if not isinstance(value, (int, float)):
        return None
    return Score(f"val {metric}", value, SELECTION_METRICS.get(metric, 1) < 0, layout.STATUS)
