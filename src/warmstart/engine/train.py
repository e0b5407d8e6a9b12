"""Wires the flow: config -> data -> model -> plan -> loop -> run directory."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from warmstart.config.io import Loaded, from_dict, to_yaml
from warmstart.console import log, log_file
from warmstart.engine.announce import announce, plan_record, write_tables
from warmstart.engine.checkpoint import Saved, load_checkpoint, mend_pointers, restore_random
from warmstart.engine.clock import Clock
from warmstart.engine.distributed import SOLO, World
from warmstart.engine.job import Job
from warmstart.engine.loop import run_loop
from warmstart.engine.outputs import run_folder, save_as
from warmstart.engine.prepare import Prepared, expected_seconds, prepare
from warmstart.engine.probe import Probe, probe
from warmstart.engine.signals import stop_on_signal
from warmstart.engine.state import TrainState
from warmstart.engine.step import make_scaler
from warmstart.errors import Interrupted, UserError
from warmstart.inference.allocator import kept_memory
from warmstart.run import layout, reader, writer


def finetune(loaded: Loaded, world: World = SOLO) -> Path:
    """Train a new run from `loaded` and return its directory. Every process of the `world` calls it alike.

    Raises:
        UserError: bad input; nothing is written then, or what was written before stays intact.
    """
    folder = world.on_main(lambda: run_folder(loaded.config))
    prepared = _prepare_alike(loaded, folder, world)
    job = prepared.job
    run = world.on_main(lambda: writer.create_run(job.run))
    with log_file(run / layout.LOG):
        for warning in loaded.warnings:
            log.warning(warning)
        announce(job, prepared.resolved)
        record = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **prepared.resolved}
        writer.write_text(run / layout.CONFIG, to_yaml(loaded.config, loaded.origins))
        writer.write_json(run / layout.PLAN, plan_record(job))
        write_tables(job)
        writer.write_json(run / layout.RESOLVED, record)  # last: with it the folder is a run
        _train(job, TrainState(), None)
    return run


def _prepare_alike(loaded: Loaded, folder: Path, world: World) -> Prepared:
    """The first process decides; the others take what it recorded, and find the same data, or all end."""

    def make(resolved: dict[str, Any] | None) -> Prepared:
        return prepare(loaded.config, loaded.origins, folder, resolved, world)

    own: list[Prepared] = []

    def decide() -> dict[str, Any]:
        own.append(make(None))
        return own[0].resolved

    resolved = world.on_main(decide)
    prepared = world.together(lambda: own[0] if own else make(resolved))
    world.start_equal(prepared.job.built.module)
    return prepared


def resume(path: str, execution: dict[str, Any], world: World = SOLO) -> Path:
    """Finish exactly the run that was started; `execution` may hold device and workers.

    Raises:
        UserError: no such run, nothing left to do, no intact checkpoint, or the data have changed.
    """
    world.on_main(lambda: _check_resumable(path))
    run = reader.open_run(path)
    config = from_dict(run.config)
    step, saved = load_checkpoint(run.path)
    mend_pointers(run, step, saved.state)
    # The folder of the data may have been given relative to another working directory.
    data = {"path": run.resolved["data"]["path"], "workers": execution.get("workers")}
    updates = {"train": {"device": execution.get("device")}, "data": data}
    for section, values in updates.items():
        given = {name: value for name, value in values.items() if value is not None}
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=given)})
    with log_file(run.path / layout.LOG):
        own_weights = str(run.checkpoint(step) / layout.MODEL)  # the start file may be gone by now
        model = config.model.model_copy(
            update={"weights": own_weights, "name": run.resolved["model"]["name"]}
        )
        asked = config.model_copy(update={"model": model})
        prepared = world.together(lambda: prepare(asked, {}, run.path, run.resolved, world))
        log.info("resuming %s from step %d of %d", path, step, prepared.job.pace.total_steps)
        _warn_of_other_numbers(saved, world)
        for name in (layout.METRICS, layout.EVALS):
            writer.append_row(run.path / name, {"kind": "resume", "step": step})
        _train(prepared.job, saved.state, saved, run.status.get("time"))
    return run.path


def _check_resumable(path: str) -> None:
    run = reader.open_run(path)
    if run.status.get("state") == "finished":
        raise UserError(
            f"{path} is finished: nothing is left to resume",
            "an interrupted run",
            f"to train on from its result: `warmstart finetune --weights {path} --data DATA`",
        )
    if run.status["state"] == "running" and run.status.get("pid") != os.getpid():
        raise UserError(
            f"{path} is still running (process {run.status.get('pid')} on {run.status.get('host')})",
            "a run that has stopped",
            f"wait for it, or, if that machine is gone, remove {run.path / layout.STATUS}",
        )
    target = from_dict(run.config).output.save_as
    if target is not None and Path(target).exists():
        raise UserError(f"--save-as {target} exists already", "a new file", "move it away, then resume")


def _warn_of_other_numbers(saved: Saved, world: World) -> None:
    threads = torch.get_num_threads()
    if saved.num_threads != threads:
        log.warning(
            "the run was started with %d threads and goes on with %d: results agree to rounding, not to the bit "
            "(set OMP_NUM_THREADS=%d)",
            saved.num_threads,
            threads,
            saved.num_threads,
        )
    if saved.num_processes != world.size:
        log.warning(
            "the run was started with %d processes and goes on with %d: results agree to rounding, "
            "and dropout draws other numbers",
            saved.num_processes,
            world.size,
        )


def dry_run(loaded: Loaded) -> tuple[Prepared, Probe]:
    """Everything up to the first step, and a probe of a few steps; nothing is written."""
    prepared = prepare(loaded.config, loaded.origins, run_folder(loaded.config))
    for warning in loaded.warnings:
        log.warning(warning)
    announce(prepared.job, prepared.resolved)
    measured = probe(prepared.job)
    memory = "not measured here" if measured.peak_bytes is None else f"{measured.peak_bytes / 2**30:.2f} GiB"
    log.info(
        "about %.0f s in all (%.3f s per step, %d steps), peak memory %s",
        expected_seconds(prepared.job, measured),
        measured.seconds_per_step,
        prepared.job.pace.total_steps,
        memory,
    )
    return prepared, measured


def _train(job: Job, state: TrainState, saved: Saved | None, before: dict[str, float] | None = None) -> None:
    """Run the loop with the random numbers, the averaged weights and the signal handlers it needs.

    `before` is the time by activity that an interrupted run had spent.
    """
    module = job.built.module
    decay = job.config.train.ema
    scaler = make_scaler(job.precision, job.device)
    devices = [job.device] if job.device.type == "cuda" else []
    with stop_on_signal() as interrupted, torch.random.fork_rng(devices), kept_memory(job.device):
        torch.manual_seed(job.config.train.seed + job.world.rank)  # dropout must differ between processes
        if saved is not None:
            module.load_state_dict(saved.weights)
        ema = None if decay is None else AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        if saved is not None:
            if ema is not None:
                ema.load_state_dict(saved.averaged)
            if scaler is not None and saved.scaler:
                scaler.load_state_dict(saved.scaler)
            if job.world.rank < saved.num_processes:
                restore_random(saved.random[job.world.rank], job.device)
        clock = Clock(before)
        writer.write_status(job.run, "running", step=state.step, time=before)
        try:
            carried = saved.optimizer if saved is not None else None
            run_loop(job, state, ema, scaler, carried, interrupted, clock)
            is_over = state.step >= job.pace.total_steps or state.stop_reason is not None
            if is_over and job.config.output.save_as and job.world.is_main:
                save_as(job, Path(job.config.output.save_as))
        except BaseException as raised:
            error = job.world.explain(raised, job.run)
            reason = f"{type(error).__name__}: {error}"
            writer.write_status(job.run, "failed", step=state.step, reason=reason, time=clock.to_json())
            raise error from (None if error is raised else raised)
    if not is_over:
        writer.write_status(job.run, "interrupted", step=state.step, time=clock.to_json())
        raise Interrupted(
            f"interrupted at step {state.step} of {job.pace.total_steps}; everything up to it is saved",
            fix=f"warmstart resume {job.run}",
        )
    _finish(job, state, clock)


def _finish(job: Job, state: TrainState, clock: Clock) -> None:
    if state.stop_reason:
        log.info("stopped at step %d: %s", state.step, state.stop_reason)
    writer.write_status(
        job.run,
        "finished",
        step=state.step,
        best_step=state.best_step,
        best_value=state.best_value,
        select_by=job.select_by,
        stop_reason=state.stop_reason,
        seconds=round(state.seconds, 2),
        time=clock.to_json(),
    )
