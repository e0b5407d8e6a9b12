"""`warmstart track`: what a run has written, sent on to a tracker that a team uses already. Imports no torch.

Training itself knows no tracker: it never waits for one, and a run that was made offline can be sent later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from warmstart.config.schema import leaves
from warmstart.errors import UserError, closest
from warmstart.run import layout, writer
from warmstart.run.reader import Run, open_run
from warmstart.shown import Shown

TRACKERS = ("mlflow", "wandb")
PROJECT = "warmstart"
_NO_METRICS = ("step", "epoch", "split", "task", "kind", "lrs", "num_samples", "stage", "when", "from_step")
_LONGEST = 500  # characters of a value that MLflow keeps
_TAGS = ("model", "data", "parent", "device", "seed", "fingerprint", "warmstart", "path")


@dataclass(frozen=True)
class Sent(Shown):
    """What was sent, and where it is to be found: `place` as the tracker names it."""

    run: str
    to: str
    project: str
    place: str
    num_values: int
    num_settings: int
    pictures_sent: tuple[str, ...]
    state: str

    def text(self) -> str:
        so_far = "" if self.state == "finished" else f" (the run is {self.state}: so far)"
        return (
            f"{self.run}: {self.num_values} values, {self.num_settings} settings, {len(self.pictures_sent)} pictures "
            f"sent to {self.to}, project {self.project}{so_far}\nfound at: {self.place}"
        )

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def track_run(path: str, to: str, project: str = PROJECT, images: bool = True, again: bool = False) -> Sent:
    """Send a run's rows (by step), settings, tags and pictures. What was sent is noted in RUN/tracked.json.

    Where the tracker is, its own environment says: MLFLOW_TRACKING_URI, or WANDB_MODE and WANDB_DIR.

    Raises:
        UserError: an unknown tracker, its package is missing, the run is in progress, was sent before, or the tracker
            refused it.
    """
    if to not in TRACKERS:
        raise UserError(f"--to {to}", " or ".join(TRACKERS), closest(to, TRACKERS))
    if find_spec(to) is None:
        raise UserError(
            f"--to {to} needs {to}, which is not installed",
            "the extra's package",
            f"pip install 'warmstart[{to}]'",
        )
    run = open_run(path)
    state = run.status["state"]
    if state == "running":
        raise UserError(
            f"{path} is in progress: half of its rows would be sent", "a run that is over", "wait for it"
        )
    known = _known(run)
    if to in known and not again:
        raise UserError(
            f"{path} was sent to {to} already: {known[to]['place']}",
            "one sending of a run",
            "--again sends it once more",
        )
    settings, tags, values = _settings(run), _tags(run), list(_values(run))
    pictures = _pictures(run) if images else []
    send = {"mlflow": _to_mlflow, "wandb": _to_wandb}[to]
    place = send(run, project, (settings, tags), values, pictures)
    writer.write_json(run.path / layout.TRACKED, {**known, to: {"project": project, "place": place}})
    names = tuple(str(picture.relative_to(run.path)) for picture in pictures)
    return Sent(str(run.path), to, project, place, len(values), len(settings), names, state)


def _known(run: Run) -> dict[str, Any]:
    file = run.path / layout.TRACKED
    if not file.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: {"place": entry["place"], "project": entry["project"]} for name, entry in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{file} is damaged", "the JSON that was written", "remove it to send the run again"
        ) from None


def _settings(run: Run) -> dict[str, str]:
    """`section.leaf` -> its value in the run."""
    config = run.config
    return {
        leaf.path: str(config[leaf.section][leaf.name])
        for leaf in leaves()
        if leaf.name in config.get(leaf.section, {})
    }


def _tags(run: Run) -> dict[str, str]:
    resolved = run.resolved
    values = (
        *(resolved["model"]["name"], resolved["data"]["path"], (resolved["parent"] or {}).get("run")),
        *(resolved["device"], resolved["seed"], resolved["data"]["fingerprint"], resolved["warmstart"]),
        str(run.path.resolve()),
    )
    return {
        f"warmstart.{name}": str(value)
        for name, value in zip(_TAGS, values, strict=True)
        if value is not None
    }


def _values(run: Run) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every number in the rows in force: `train/loss`, `val/accuracy`, `TASK.val/accuracy`.

    The pass of a later `evaluate` over the same step is no second measurement of the training.
    """
    for row in run.metrics.rows:
        if row.get("kind") == "train":
            yield from _numbers("train", row)
    for row in run.evals.rows:
        if row.get("kind") is None:
            name = "eval_train" if row["split"] == "train" else row["split"]
            yield from _numbers(layout.of_task(name, row.get("task")), row)


def _numbers(prefix: str, row: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    for name, value in row.items():
        if name not in _NO_METRICS and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{name}", float(value), row["step"]


def _pictures(run: Run) -> list[Path]:
    found = [
        run.path / layout.CURVES,
        run.path / layout.REPORT,
        run.path / layout.BLEND,
        run.path / layout.COMPRESSION_PLOT,
    ]
    evaluations = sorted((run.path / layout.EVALUATIONS).glob("*/*.png"))
    return [path for path in (*found, *evaluations) if path.is_file()]


def _to_mlflow(
    run: Run,
    project: str,
    facts: tuple[dict[str, str], dict[str, str]],
    values: list[tuple[str, float, int]],
    pictures: list[Path],
) -> str:
    """Through MLflow's client; the run's own times are kept. `facts` are (settings, tags)."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    settings, tags = facts
    try:
        client = MlflowClient()
        experiment = client.get_experiment_by_name(project)
        number = client.create_experiment(project) if experiment is None else experiment.experiment_id
        made = client.create_run(number, run_name=run.path.resolve().name)
        name = made.info.run_id
        params = [Param(key, value[:_LONGEST]) for key, value in settings.items()]
        labels = [RunTag(key, value) for key, value in tags.items()]
        metrics = [Metric(key, value, made.info.start_time, step) for key, value, step in values]
        for start in range(0, max(len(metrics), len(params)), 100):  # the server takes so many at once
            end = start + 100
            client.log_batch(name, metrics[start:end], params[start:end], labels if start == 0 else ())
        for picture in pictures:
            client.log_artifact(name, str(picture), _folder(run, picture))
        client.set_terminated(name, "FINISHED" if run.status["state"] == "finished" else "KILLED")
    except MlflowException as error:
        raise UserError(
            f"MLflow refused the run: {error.message}",
            "a tracking server that can be reached",
            "set MLFLOW_TRACKING_URI",
        ) from None
    return f"{client.tracking_uri.rstrip('/')} experiment {number} run {name}"


def _folder(run: Run, picture: Path) -> str | None:
    parent = picture.parent.relative_to(run.path).as_posix()
    return None if parent == "." else parent


def _to_wandb(
    run: Run,
    project: str,
    facts: tuple[dict[str, str], dict[str, str]],
    values: list[tuple[str, float, int]],
    pictures: list[Path],
) -> str:
    """Through wandb's own process. All rows of a step are one, as its steps only rise. `facts` are (settings, tags)."""
    import wandb

    settings, tags = facts
    by_step: dict[int, dict[str, Any]] = {}
    for key, value, step in values:
        by_step.setdefault(step, {})[key] = value
    quiet = wandb.Settings(console="off", silent=True)
    try:
        target = wandb.init(
            project=project, name=run.path.resolve().name, config={**settings, **tags}, settings=quiet
        )
        for step, row in sorted(by_step.items()):
            target.log(row, step=step)
        for picture in pictures:
            if picture.suffix == ".png":
                target.summary[picture.relative_to(run.path).as_posix()] = wandb.Image(str(picture))
            else:
                target.save(str(picture), base_path=str(run.path), policy="now")
        place = target.dir if target.offline else target.url
        target.finish(exit_code=0 if run.status["state"] == "finished" else 1)
    except (wandb.errors.Error, OSError) as error:
        raise UserError(
            f"wandb refused the run: {error}",
            "a login, or WANDB_MODE=offline",
            f"see {os.environ.get('WANDB_DIR', 'wandb/')}",
        ) from None
    return str(place)
