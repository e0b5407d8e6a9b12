"""A recorded run as it was before its first step, in a new folder: `warmstart resume` then does it again.

What was decided and measured when the run was started (steps, workers, features, augmentation) is taken as recorded,
and not decided anew. Nothing of the run itself is written to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart import __version__
from warmstart.config.io import from_dict, to_yaml
from warmstart.config.places import absolute, check_on_disk, is_path
from warmstart.config.schema import Config
from warmstart.engine.beginning import check_stopped
from warmstart.engine.record import versions
from warmstart.errors import UserError
from warmstart.models.choose import head_beside
from warmstart.run import layout, reader, writer
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run

AGAIN = "again"  # key in resolved.json: of which run, and in what environment
_COPIED = (layout.PLAN, layout.QUARANTINE, layout.SPLITS)
_MADE = {"blend": "is a blend of weights: it has no steps", "compress": "was made smaller: it has no steps"}


@dataclass(frozen=True)
class Moved:
    """Where data and weights lie now, and the device, where these are others than then."""

    data: str | None = None
    weights: str | None = None
    device: str | None = None


NOWHERE_ELSE = Moved()


def check_repeatable(run: Run) -> None:
    """UserError: what cannot be done again, before anything is spent."""
    check_stopped(run)
    made = next((words for key, words in _MADE.items() if key in run.resolved), None)
    if made is not None or not (run.metrics.rows or run.evals.rows):
        raise UserError(
            f"{run.path} {made or 'has trained nothing: it has no rows'}",
            "a run that was trained",
            "the run that it was made from can be reproduced" if made else "",
        )
    check_on_disk(from_dict(run.config), "what is done again runs in a process of its own")


def prepare_again(run: Run, folder: Path, moved: Moved) -> Path:
    """The new run directory, as `run` was before its first step.

    Raises:
        UserError: data or weights are gone or others, or the folder is not empty.
    """
    resolved = json.loads((run.path / layout.RESOLVED).read_text(encoding="utf-8"))
    config = from_dict(run.config)
    output = {
        "save_as": None,
        "name": None,
        "output_dir": str(folder),
        "tensorboard": False,
        "pictures": False,
    }
    weights = _weights(run, config, moved.weights)
    updates: dict[str, dict[str, Any]] = {"output": output, "model": {"weights": weights}}
    if moved.data is not None:
        updates["data"] = {"path": moved.data}
        resolved["data"]["path"] = absolute(moved.data)
    for section, values in updates.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    resolved["pace"]["max_seconds"] = None  # how many steps there was time for is known
    _check_data(run, resolved["data"]["path"])
    if "continued" in resolved:
        resolved["continued"]["later"] = []  # phases after it are runs of their own
    resolved[AGAIN] = {"run": str(run.path), "warmstart": __version__, "versions": versions()}
    writer.create_run(folder)
    own = {path.name for path in run.path.iterdir()}
    for name in (*_COPIED, *(layout.source_splits_name(n) for n in range(len(run.source_places)))):
        if name in own:
            shutil.copyfile(run.path / name, folder / name)
    if layout.PROCESSOR in own:
        shutil.copytree(run.path / layout.PROCESSOR, folder / layout.PROCESSOR)
    if "continued" in resolved:
        _take_along(run, folder)
    writer.write_text(folder / layout.CONFIG, to_yaml(config, {}))
    writer.write_json(folder / layout.RESOLVED, resolved)
    return folder


def _take_along(run: Run, folder: Path) -> None:
    """What a child has of its parent before its first step: the start to hold on to, and a best that is older."""
    if (run.path / layout.START).exists():
        shutil.copyfile(run.path / layout.START, folder / layout.START)
    rows = [row for row in run.evals.rows if row.get("kind") == "parent"]
    if not rows:
        return
    best, parent = rows[0]["step"], Run(Path(run.resolved["parent"]["run"]))
    homes = [home for home in (run, parent) if home.checkpoint(best).is_dir()]
    if not homes:
        raise UserError(
            f"the best of the parent ({parent.path}, step {best}), which {run.path} took along, is gone from both"
        )
    shutil.copytree(homes[0].checkpoint(best), folder / layout.CHECKPOINTS / layout.checkpoint_name(best))
    for row in rows:
        writer.append_row(folder / layout.EVALS, row)
    writer.write_text(folder / layout.CHECKPOINTS / layout.LAST, layout.checkpoint_name(best) + "\n")
    writer.mark_best(folder, best)


def _check_data(run: Run, place: str) -> None:
    if is_path(place) and not Path(place).exists():
        raise UserError(
            f"the data of {run.path} are not at {place} any more",
            "the same images",
            "--data PLACE: where they are",
        )


def _weights(run: Run, config: Config, given: str | None) -> str | None:
    """What the run began with, by its exact file. UserError: it is gone, or holds something else now."""
    parent, source = run.resolved["parent"], run.resolved["model"]["source"]
    if source["kind"] != "file":
        return config.model.weights
    begun = given or (str(source["path"]) if parent is None else reference_of(parent))
    path, _ = reader.split_reference(begun)
    if not path.exists():
        raise UserError(
            f"{run.path} began with the weights of {begun}, which are not there",
            f"the file with the sha256 {str(source['sha256'])[:16]}...",
            "--weights FILE: where they are"
            if Path(begun).is_absolute()
            else "start from the folder that the path goes from, or --weights FILE",
        )
    file = reader.model_file(begun)[2] if layout.is_run(path) else path
    is_plain = (
        file.is_file() and file.suffix != ".json" and head_beside(file) is None
    )  # else a hash over several
    if is_plain and source["sha256"] is not None:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != source["sha256"]:
            raise UserError(
                f"{begun} holds other weights than {run.path} began with (sha256 {digest[:16]}..., then "
                f"{source['sha256'][:16]}...)",
                "the same file",
                "--weights FILE: where they are",
            )
    return begun
