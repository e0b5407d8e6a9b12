"""A step that failed is undone: back to the last planned checkpoint, and on from there with half the rate.

That checkpoint costs nothing, as it is written in any case, and going back is what `resume` does: order,
augmentation and dropout repeat themselves, so nothing but the rate differs the second time. A failure is noticed at
the next row, validation or checkpoint, never by waiting for a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from warmstart.console import log
from warmstart.engine.checkpoint import Saved, load_checkpoint, mend_pointers, restore_random
from warmstart.engine.clock import Clock
from warmstart.engine.job import Job
from warmstart.engine.loop import run_loop
from warmstart.engine.state import NotFinite, TrainState
from warmstart.engine.step import make_scaler
from warmstart.errors import listing
from warmstart.run import layout, reader, writer

_FACTOR = 0.5


def run_with_rescues(
    job: Job, state: TrainState, saved: Saved | None, interrupted: Callable[[], bool], clock: Clock
) -> None:
    """`run_loop` from what was `saved` (None: from the model as it was built), again after every rescue.

    Raises:
        UserError: a step failed and `--rescue` allows no more; or whatever else ends the loop.
    """
    while True:
        ema, scaler = _restore(job, saved)
        try:
            run_loop(job, state, ema, scaler, saved, interrupted, clock)
            return
        except NotFinite as error:
            if len(state.failed_steps) >= job.config.train.rescue:
                _name_images(job, error)
                raise
            failure = error
        saved = _go_back(job, state, failure)


def _restore(job: Job, saved: Saved | None) -> tuple[AveragedModel | None, GradScaler | None]:
    """Weights, averages, scaler and random numbers as they were saved."""
    module, decay = job.built.module, job.config.train.ema
    scaler = make_scaler(job.precision, job.device)
    if saved is not None:
        module.load_state_dict(saved.weights)
    ema = None if decay is None else AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    if saved is not None:
        if ema is not None and saved.averaged:
            ema.load_state_dict(saved.averaged)
        if scaler is not None and saved.scaler:
            scaler.load_state_dict(saved.scaler)
        if job.world.rank < saved.num_processes:
            restore_random(saved.random[job.world.rank], job.device)
    return ema, scaler


def _go_back(job: Job, state: TrainState, failure: NotFinite) -> Saved:
    """Make `state` that of the last planned checkpoint with a lower rate, write the row, and say all that."""
    job.world.on_main(lambda: None)  # the first process has written its checkpoints when it comes here
    step, saved = load_checkpoint(job.run, state.good_step)
    failed = [*state.failed_steps, failure.step]
    saved = replace(
        saved,
        state=replace(
            saved.state,
            failed_steps=failed,
            rescue_factor=state.rescue_factor * _FACTOR,
            seconds=state.seconds,
            trained_at_once=state.trained_at_once,
            evaluated_at_once=state.evaluated_at_once,
            computed_at_once=state.computed_at_once,
            unreadable=state.unreadable,
        ),
    )
    state.take(saved.state)
    ids = _ids(job, failure.step)
    is_left_out = failed.count(failure.step) > 1
    row = {
        "kind": "rescue",
        "step": step,
        "failed_step": failure.step,
        "factor": state.rescue_factor,
        "is_left_out": is_left_out,
        "reason": failure.happened,
        "ids": ids,
    }
    if job.world.is_main:
        mend_pointers(reader.Run(job.run), step, state)
    writer.append_row(job.run / layout.METRICS, row)
    writer.append_row(job.run / layout.EVALS, {"kind": "resume", "step": step, "rescues": len(failed)})
    log.warning(
        "rescue %d of %d: %s. Back to step %d, on with %g of the planned rate; %s: %s (all in %s)",
        len(failed),
        job.config.train.rescue,
        failure.happened,
        step,
        state.rescue_factor,
        "it failed twice, so its images are left out" if is_left_out else "its images are tried again",
        listing(ids, 4),
        layout.METRICS,
    )
    return saved


def _name_images(job: Job, failure: NotFinite) -> None:
    """The images of the step that ends the run, in a row, to be looked at or replayed."""
    ids = _ids(job, failure.step)
    row = {"kind": "failed", "step": failure.step, "reason": failure.happened, "ids": ids}
    writer.append_row(job.run / layout.METRICS, row)
    log.warning(
        "%s, and no rescue is left; its images: %s (all in %s)",
        failure.happened,
        listing(ids, 4),
        layout.METRICS,
    )


def _ids(job: Job, step: int) -> list[str]:
    """The images of a step, counted from 1, in their order; several times where a balanced order repeats them."""
    epoch, window = divmod(step - 1, job.pace.steps_per_epoch)
    found: list[str] = []
    for part in job.windows(epoch)[window]:
        task, places = (None, part) if isinstance(part, np.ndarray) else part
        samples = job.dataset.training if task is None else job.lanes[task].dataset.training
        names = [samples.ids[index % len(samples)] for index in places.tolist()]
        found += names if task is None else [f"{job.lanes[task].name}/{name}" for name in names]
    return found
