"""What `--weights` and the model argument of evaluate and predict may name: files, runs, or RUN@step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import log
from warmstart.models.choose import Score, check_path, checkpoints_in, choose, matches
from warmstart.models.objects import keep
from warmstart.run import layout, reader
from warmstart.run.reader import Run


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
    path, at = reader.split_reference(reference)
    check_path(path)
    if at is None and (inside := _in_run(path)) is not None:
        path, step_inside = inside
        reference = f"{path}@{step_inside}"
    elif at is None and not path.is_file() and not layout.is_run(path):
        reference = _among_runs(reference, path)
        path, _ = reader.split_reference(reference)
    if layout.is_run(path):
        run, step, file = reader.model_file(reference)
        return WeightsReference(str(file), run, step)
    return WeightsReference(reference)


def keep_module(
    module: object, reference: str | None = None, image_size: tuple[int, int] | None = None
) -> str:
    """Keep a copy of a Python object for this process and return its name, `object:ClassName-DIGEST`.

    Its layers are looked at with `image_size`, else with that of the run that `reference` names.
    UserError: see `models.objects.keep`.
    """
    path = None if reference is None else reader.split_reference(reference)[0]
    if image_size is None and path is not None and layout.is_run(path):
        height, width = Run(path).resolved["model"]["preprocessing"]["image_size"]
        image_size = height, width
    return keep(module, image_size)


def _in_run(path: Path) -> tuple[Path, int] | None:
    """The run and the step that a file of weights belongs to by where it lies."""
    parents = path.parents if len(path.parents) > 2 else path.absolute().parents
    if path.name != layout.MODEL or not path.is_file() or len(parents) <= 2:
        return None
    step = layout.checkpoint_step(parents[0].name)
    if step is None or parents[1].name != layout.CHECKPOINTS or not layout.is_run(parents[2]):
        return None
    return parents[2], step


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
