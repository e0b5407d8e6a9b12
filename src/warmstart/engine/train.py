"""Wires the flow: config -> data -> model -> plan -> loop -> run directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from warmstart.config.io import Loaded, from_dict, to_yaml
from warmstart.config.mix_rules import at_places
from warmstart.config.schema import Config
from warmstart.console import log, log_file
from warmstart.engine.announce import announce, plan_record, write_tables
from warmstart.engine.beginning import Beginning, check_stopped
from warmstart.engine.checkpoint import Saved, load_checkpoint, mend_pointers
from warmstart.engine.clock import Clock
from warmstart.engine.continuing.continue_run import beginning_of
from warmstart.engine.distributed import SOLO, World
from warmstart.engine.job import Job
from warmstart.engine.lessons.start import open_start
from warmstart.engine.measure import measure_best_on_test
from warmstart.engine.opening.text_tower import keep_processor
from warmstart.engine.outputs import run_folder, write_outputs
from warmstart.engine.pace import expected_seconds
from warmstart.engine.prepare import Prepared, prepare
from warmstart.engine.probe import Probe, probe
from warmstart.engine.rescue import run_with_rescues
from warmstart.engine.signals import stop_on_signal
from warmstart.engine.stages import unreached
from warmstart.engine.state import TrainState
from warmstart.errors import Interrupted, UserError
from warmstart.inference.allocator import kept_memory
from warmstart.run import layout, reader, writer
from warmstart.run.lineage import compare_with_parent


def finetune(loaded: Loaded, world: World = SOLO, beginning: Beginning | None = None) -> Path:
    """Train a new run from `loaded` and return its directory. Every process of the `world` calls it alike.

    Raises:
        UserError: bad input; nothing is written then, or what was written before stays intact.
    """
    beginning = beginning or Beginning()
    folder = world.on_main(lambda: run_folder(loaded.config))
    prepared = _prepare_alike(loaded, folder, world, beginning)
    job = prepared.job
    run = world.on_main(lambda: writer.create_run(job.run))
    with log_file(run / layout.LOG):
        _tell(loaded, prepared, beginning)
        record = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **prepared.resolved}
        writer.write_text(run / layout.CONFIG, to_yaml(loaded.config, loaded.origins))
        writer.write_json(run / layout.PLAN, plan_record(job))
        write_tables(job)
        keep_processor(job)
        beginning.write(prepared)
        writer.write_json(run / layout.RESOLVED, record)  # last: with it the folder is a run
        state, begun = beginning.state(job)
        _train(replace(job, start=open_start(job, is_fresh=True, saved=begun)), state, begun)
    return run


def _tell(loaded: Loaded, prepared: Prepared, beginning: Beginning) -> None:
    for note in loaded.notes:
        log.info("alias: %s", note)
    for warning in loaded.warnings:
        log.warning(warning)
    announce(prepared.job, prepared.resolved)
    beginning.announce(prepared)


def _prepare_alike(loaded: Loaded, folder: Path, world: World, beginning: Beginning) -> Prepared:
    """The first process decides; the others take what it recorded, and find the same data, or all end."""

    def make(resolved: dict[str, Any] | None) -> Prepared:
        return prepare(loaded.config, loaded.origins, folder, resolved, world, beginning.steps_done)

    own: list[Prepared] = []

    def decide() -> dict[str, Any]:
        own.append(beginning.complete(make(None)))
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
    saved = _last_saved(run)
    world.on_main(lambda: _check_target(run, saved))
    config = _as_recorded(run, execution, saved)
    beginning = beginning_of(run) if saved is None else Beginning()
    num_threads = saved.num_threads if saved is not None else run.resolved["num_threads"]
    with log_file(run.path / layout.LOG), _threads(num_threads):
        prepared = world.together(lambda: prepare(config, {}, run.path, run.resolved, world))
        job = prepared.job
        if saved is None:
            world.start_equal(job.built.module)
            state, begun = beginning.state(job)
            # Only what a child took over from its parent stands before its first step.
            taken_back = {"step": job.pace.first_step - 1, "rescues": 0}
        else:
            state, begun = saved.state, saved
            taken_back = {"step": state.step, "rescues": len(state.failed_steps)}
        log.info("resuming %s from step %d of %d", path, state.step, job.pace.total_steps)
        if saved is not None and saved.num_processes != world.size:
            log.warning(
                "the run was started with %d processes and goes on with %d: results agree to rounding, "
                "and dropout draws other numbers",
                saved.num_processes,
                world.size,
            )
        for name in (layout.METRICS, layout.EVALS):
            writer.append_row(run.path / name, {"kind": "resume", **taken_back})
        job = replace(job, start=open_start(job, is_fresh=saved is None, saved=begun))
        _train(job, state, begun, run.status.get("time"))
    return run.path


def _as_recorded(run: reader.Run, execution: dict[str, Any], saved: Saved | None) -> Config:
    """The run's config with this machine's device and workers, and paths that hold from any working directory."""
    config = at_places(from_dict(run.config), run.source_places)
    data = {"path": run.resolved["data"]["path"], "workers": execution.get("workers")}
    updates: dict[str, dict[str, Any]] = {"train": {"device": execution.get("device")}, "data": data}
    updates["distill"] = {"teacher": run.teachers or None}
    if saved is not None:  # the start file may be gone by now
        own_weights = str(run.checkpoint(saved.state.step) / layout.MODEL)
        updates["model"] = {"weights": own_weights, "name": run.resolved["model"]["name"]}
        updates["text"] = {"prompts": ()}  # the checkpoint states its own
    for section, values in updates.items():
        given = {name: value for name, value in values.items() if value is not None}
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=given)})
    return config


def _last_saved(run: reader.Run) -> Saved | None:
    """The newest intact checkpoint, with LAST and BEST in order; None where the run ended before its own first one.

    A child run may hold its parent's best already, which lies before its first step.
    """
    if max(run.checkpoint_steps(), default=-1) < run.resolved["pace"].get("first_step", 0):
        return None
    step, saved = load_checkpoint(run.path)
    mend_pointers(run, step, saved.state)
    return saved


def _check_resumable(path: str) -> None:
    run = reader.open_run(path)
    if run.status.get("state") == "finished":
        raise UserError(
            f"{path} is finished: nothing is left to resume",
            "an interrupted run",
            f"more epochs: `warmstart continue {path} --epochs N`; other data: `warmstart finetune --weights {path} "
            "--data DATA`",
        )
    check_stopped(run)


def _check_target(run: reader.Run, saved: Saved | None) -> None:
    """UserError for a file in the place of `--save-as`, unless the run may have written it before it was killed."""
    target = from_dict(run.config).output.save_as
    is_over = saved is not None and _is_over(saved.state, run.resolved["pace"]["total_steps"])
    if target is not None and Path(target).exists() and not is_over:
        raise UserError(f"--save-as {target} exists already", "a new file", "move it away, then resume")


def _is_over(state: TrainState, total_steps: int) -> bool:
    return state.step >= total_steps or state.stop_reason is not None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute on as many threads as before: another number rounds differently."""
    before = torch.get_num_threads()
    if number != before:
        log.info("on %d threads, as the run was started, and not on %d: to the bit the same", number, before)
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dry_run(loaded: Loaded, beginning: Beginning | None = None) -> tuple[Prepared, Probe]:
    """Everything up to the first step, and a probe of a few steps; nothing is written."""
    beginning = beginning or Beginning()
    prepared = _prepare_alike(loaded, run_folder(loaded.config), SOLO, beginning)
    _tell(loaded, prepared, beginning)
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
    devices = [job.device] if job.device.type == "cuda" else []
    with stop_on_signal() as interrupted, torch.random.fork_rng(devices), kept_memory(job.device):
        torch.manual_seed(job.config.train.seed + job.world.rank)  # dropout must differ between processes
        clock = Clock(before)
        writer.write_status(job.run, "running", step=state.step, time=before)
        try:
            run_with_rescues(job, state, saved, interrupted, clock)
            is_over = _is_over(state, job.pace.total_steps)
            if is_over and job.world.is_main:
                if job.config.meta.is_on:
                    measure_best_on_test(job, state, clock)
                write_outputs(job)
        except BaseException as raised:
            error = job.world.explain(raised, job.run)
            reason = f"{type(error).__name__}: {error}"
            writer.write_status(job.run, "failed", step=state.step, reason=reason, time=clock.to_json())
            raise error from (None if error is raised else raised)
    if not is_over:
        lost = state.unreadable
        writer.write_status(job.run, "interrupted", step=state.step, unreadable=lost, time=clock.to_json())
        raise Interrupted(
            f"interrupted at step {state.step} of {job.pace.total_steps}; everything up to it is saved",
            fix=f"warmstart resume {job.run}",
        )
    _finish(job, state, clock)


def _finish(job: Job, state: TrainState, clock: Clock) -> None:
    if state.stop_reason:
        log.info("stopped at step %d: %s", state.step, state.stop_reason)
    never = unreached(job, state)
    for stage in never:
        log.warning(stage)
    compared = compare_with_parent(reader.Run(job.run)) if job.world.is_main else None
    if compared is not None:
        log.info(compared.text())
    writer.write_status(
        job.run,
        "finished",
        step=state.step,
        best_step=state.best_step,
        best_value=None if state.best_step is None else state.best_value,  # a parent's bar is not this run's
        select_by=job.select_by,
        stop_reason=state.stop_reason,
        stages_never_begun=never,
        recovery_events=state.num_recoveries,
        rescues=len(state.failed_steps),
        unreadable=state.unreadable,
        improved_by=None if compared is None else compared.gain,
        seconds=round(state.seconds, 2),
        time=clock.to_json(),
    )
