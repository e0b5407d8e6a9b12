"""`warmstart track`: what a run has written, sent on to a tracker that a team uses already. Imports no torch.

Training itself knows no tracker: it never waits for one, and a run that was made offline can be sent later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
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
_STATES = {"finished": "FINISHED", "failed": "FAILED"}  # as MLflow calls them; others are KILLED
_Note = Callable[[str, str], None]  # of (place, id): it is begun there
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


@dataclass(frozen=True)
class _Package:
    """What is sent. `values` are (name, value, step)."""

    run: Run
    project: str
    settings: dict[str, str]
    tags: dict[str, str]
    values: list[tuple[str, float, int]]
    pictures: list[Path]

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def times(self) -> tuple[int, int | None]:
        """When the run began and ended, in ms since 1970; the end is None where nobody knows."""
        begun = datetime.fromisoformat(self.run.resolved["created"]).timestamp()
        seconds = self.run.status.get("seconds")
        return round(1000 * begun), None if seconds is None else round(1000 * (begun + seconds))


def track_run(path: str, to: str, project: str = PROJECT, images: bool = True, again: bool = False) -> Sent:
    """Send a run's rows (by step), settings, tags and pictures. What was sent is noted in RUN/tracked.json.

    A sending that failed half-way is noted too, and the next one goes on with it instead of beginning another.

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
    entry = None if again else known.get(to)
    if entry is not None and "unfinished" not in entry:
        raise UserError(
            f"{path} was sent to {to} already: {entry['place']}",
            "one sending of a run",
            "--again sends it once more",
        )
    pictures = _pictures(run) if images else []
    package = _Package(run, project, _settings(run), _tags(run), list(_values(run)), pictures)

    def note(place: str, **unfinished: str) -> None:
        own = {"project": project, "place": place, **unfinished}
        writer.write_json(run.path / layout.TRACKED, {**known, to: own})

    send = {"mlflow": _to_mlflow, "wandb": _to_wandb}[to]
    half = None if entry is None or entry["project"] != project else entry["unfinished"]
    place = send(package, half, lambda place, number: note(place, unfinished=number))
    note(place)
    names = tuple(str(picture.relative_to(run.path)) for picture in pictures)
    return Sent(str(run.path), to, project, place, len(package.values), len(package.settings), names, state)


def _known(run: Run) -> dict[str, Any]:
    file = run.path / layout.TRACKED
    if not file.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: {"place": entry["place"], "project": entry["project"]}
            | ({"unfinished": str(entry["unfinished"])} if "unfinished" in entry else {})
            for name, entry in content.items()
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


def _to_mlflow(package: _Package, half: str | None, note: _Note) -> str:
    """Through MLflow's client; the times are the run's own. `half`: the id of what an earlier sending has begun."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    begun, ended = package.times
    name = half
    try:
        client = MlflowClient()
        if name is None:
            experiment = client.get_experiment_by_name(package.project)
            number = (
                client.create_experiment(package.project) if experiment is None else experiment.experiment_id
            )
            name = client.create_run(number, start_time=begun, run_name=package.name).info.run_id
        else:
            number = client.get_run(name).info.experiment_id
        place = f"{client.tracking_uri.rstrip('/')} experiment {number} run {name}"
        note(place, name)
        try:
            _fill_mlflow(client, name, package)
        except (MlflowException, OSError):
            with suppress(MlflowException, OSError):  # what failed may not answer this either
                client.set_terminated(name, "FAILED")
            raise
        client.set_terminated(name, _STATES.get(package.run.status["state"], "KILLED"), ended)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow refused the run: {error}",
            "a tracking server that can be reached",
            "set MLFLOW_TRACKING_URI, and send it again: it goes on; --again begins anew",
        ) from None
    return place


def _fill_mlflow(client: Any, name: str, package: _Package) -> None:
    from mlflow.entities import Metric, Param, RunTag

    params = [Param(key, value[:_LONGEST]) for key, value in package.settings.items()]
    labels = [RunTag(key, value) for key, value in package.tags.items()]
    # With one time for all, MLflow knows a number that an earlier sending has brought.
    metrics = [Metric(key, value, package.times[0], step) for key, value, step in package.values]
    for start in range(0, max(len(metrics), len(params)), 100):  # the server takes so many at once
        end = start + 100
        client.log_batch(name, metrics[start:end], params[start:end], labels if start == 0 else ())
    for picture in package.pictures:
        client.log_artifact(name, str(picture), _folder(package.run, picture))


def _folder(run: Run, picture: Path) -> str | None:
    parent = picture.parent.relative_to(run.path).as_posix()
    return None if parent == "." else parent


def _to_wandb(package: _Package, half: str | None, note: _Note) -> str:
    """Through wandb's own process. All rows of a step are one, as its steps only rise. `half`: as for MLflow."""
    import wandb

    quiet = wandb.Settings(console="off", silent=True)
    config = {**package.settings, **package.tags}
    try:
        target = wandb.init(
            project=package.project,
            name=package.name,
            config=config,
            id=half,
            resume=None if half is None else "allow",
            settings=quiet,
        )
        place = str(target.dir if target.offline else target.url)
        note(place, target.id)
        try:
            _fill_wandb(target, package)
        except (wandb.errors.Error, OSError):
            with suppress(wandb.errors.Error, OSError):  # what failed may not answer this either
                target.finish(exit_code=1)
            raise
        target.finish(exit_code=0 if package.run.status["state"] == "finished" else 1)
    except (wandb.errors.Error, OSError) as error:
        raise UserError(
            f"wandb refused the run: {error}",
            "a login, or WANDB_MODE=offline",
            f"see {os.environ.get('WANDB_DIR', 'wandb/')}",
        ) from None
    return place


def _fill_wandb(target: Any, package: _Package) -> None:
    import wandb

    by_step: dict[int, dict[str, Any]] = {}
    for key, value, step in package.values:
        by_step.setdefault(step, {})[key] = value
    for step, row in sorted(by_step.items()):
        target.log(row, step=step)
    for picture in package.pictures:
        if picture.suffix == ".png":
            target.summary[picture.relative_to(package.run.path).as_posix()] = wandb.Image(str(picture))
        else:
            target.save(str(picture), base_path=str(package.run.path), policy="now")
