"""sweep: a request -> a study -> trials -> the table, the best config, and pictures.

All that is known lies in the storage and in the runs; OUT/sweep.json is written again after every trial.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warmstart.analysis.sweep_plot import Line, plot_importance, plot_parallel
from warmstart.config.io import to_yaml
from warmstart.config.schema import SELECTION_METRICS
from warmstart.config.sweep_section import SweepConfig
from warmstart.errors import Interrupted, UserError, listing
from warmstart.inference.device import resolve_device
from warmstart.methods.sweep.request import Request
from warmstart.methods.sweep.result import Swept, TrialRow
from warmstart.methods.sweep.search import Search
from warmstart.methods.sweep.study import Known, Study, open_study
from warmstart.methods.trials.looks import count_looks
from warmstart.methods.trials.owner import owned
from warmstart.methods.trials.process import Launch, launch_here
from warmstart.methods.trials.running import run_trials, slots_of
from warmstart.records import finite
from warmstart.run import layout, writer


def sweep(request: Request, goes_on: bool, launch: Launch | None = None) -> Swept:
    """Run the trials that are left, and tell what all of them have found.

    Raises:
        Interrupted: by a signal; every trial has saved, and the same command goes on.
        UserError: a storage that does not answer, a folder that another process works in, a device
            that is not there, data without val, no trial that works.
    """
    settings, folder = request.settings, request.folder.absolute()
    url = settings.storage or f"sqlite:///{folder / layout.SWEEP_STORAGE}"
    budget = settings.time_budget
    slots = slots_of(settings.devices, settings.slots)
    for device in settings.devices:  # before every trial fails by it
        resolve_device(device)
    with owned(folder), _launcher(settings, len(slots)) as own:
        worker = f"{platform.node()}:{folder}"
        is_new = not goes_on or not (folder / layout.TRIALS).exists()  # killed before its first trial
        study = open_study(request, url, worker, is_new)
        search = Search(request, study)
        until = None if budget is None else time.monotonic() + budget.amount
        total = request.num_trials
        try:
            for outcome in run_trials(
                search.trials(), slots, search.judge, until=until, launch=launch or own, total=total
            ):
                search.ended(outcome)
                _write(_found(request, study))
        except Interrupted as error:
            _write(_found(request, study, at_rest=worker))
            raise Interrupted(error.happened, error.expected, f"warmstart sweep {request.folder}") from None
        search.close()
        found = _found(request, study, at_rest=worker)
        _write(found)
        _conclude(request, found)
    return found


@contextmanager
def _launcher(settings: SweepConfig, num_slots: int) -> Iterator[Launch]:
    """Where processes are started."""
    if settings.engine == "local":
        yield launch_here
        return
    from warmstart.methods.sweep.ray_cluster import cluster

    with cluster(settings.ray_address, num_slots) as launch:
        yield launch


def _found(request: Request, study: Study, at_rest: str | None = None) -> Swept:
    """All that is known; of the worker that is `at_rest` no trial is running any more."""
    rows = [_row(known, at_rest) for known in study.known()]
    metrics = {known.notes["metric"] for known in study.known() if "metric" in known.notes}
    metric = metrics.pop() if metrics else None
    done = [row for row in rows if row.state == "finished" and row.value is not None]
    best = None
    if metric is not None and done:
        best = max(done, key=lambda row: (SELECTION_METRICS[metric] * (row.value or 0.0), -row.number)).number
    notes = []
    failed = [row.number for row in rows if row.state == "failed"]
    if failed:
        notes.append(f"trials that failed: {listing(failed, 8)}; why is in {layout.SWEEP}")
    return Swept(
        folder=str(request.folder),
        metric=metric,
        method=request.settings.searched_by,
        prune=request.settings.prune,
        seed=request.settings.seed,
        base=str(request.folder / layout.SWEEP_BASE),
        space={name: str(values) for name, values in request.settings.set},
        storage=request.settings.shown_storage or layout.SWEEP_STORAGE,
        trials=tuple(rows),
        best=best,
        importance=study.importance(),
        notes=tuple(notes),
    )


def _row(known: Known, at_rest: str | None) -> TrialRow:
    notes, state = known.notes, known.state
    if state == "running" and (notes.get("is_paused") or notes.get("worker") == at_rest):
        state = "paused"
    names = ("value", "low", "high", "best_step", "step", "total_steps", "seconds", "run", "reason")
    return TrialRow(
        known.number, state, known.values, **{name: notes[name] for name in names if name in notes}
    )


def _write(found: Swept) -> None:
    writer.write_json(Path(found.folder) / layout.SWEEP, finite(found.to_json()))


def _conclude(request: Request, found: Swept) -> None:
    """The best config and the pictures; UserError where every trial has failed."""
    rows = found.trials
    if all(row.state == "failed" for row in rows):
        raise UserError(
            f"all {len(rows)} trials failed; the first: {rows[0].reason}",
            "settings that train",
            f"`warmstart finetune --config {found.base}` shows what is wrong; then a new --output-dir",
        )
    best = found.best_row
    if best is None:
        return
    own = request.trial(best.number, best.values)
    origins = {
        path: "the sweep" if origin == "flag" else origin for path, origin in own.loaded.origins.items()
    }
    writer.write_text(request.folder / layout.BEST_CONFIG, to_yaml(own.config, origins))
    count_looks(Path(row.run) for row in rows if row.run is not None)
    assert found.metric is not None, "a finished trial has one"
    plot_parallel(
        [
            Line(row.values, row.value, row.state == "finished", row.number == found.best)
            for row in rows
            if row.value is not None
        ],
        request.settings.set,
        found.metric,
        request.folder / layout.SWEEP_PARALLEL,
    )
    if found.importance:
        num = sum(row.state == "finished" for row in rows)
        plot_importance(found.importance, num, request.folder / layout.SWEEP_IMPORTANCE)
