"""From durations to optimizer steps, and from a time budget to as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from warmstart.config.schema import Config
from warmstart.console import log
from warmstart.data.dataset import Dataset
from warmstart.data.mixture import training_windows
from warmstart.data.samples import Samples
from warmstart.data.task_windows import task_windows
from warmstart.engine.job import Job, Pace
from warmstart.engine.probe import Probe
from warmstart.engine.schedule import make_schedule
from warmstart.errors import UserError, listing


def make_pace(
    config: Config, dataset: Dataset, steps_done: Callable[[int], int], tasks: Sequence[Samples] = ()
) -> Pace:
    """Durations in steps; `steps_done` of them lie behind the run where it goes on counting.

    `tasks` are the training images of several. Raises UserError.
    """
    train = config.train
    per_epoch = len(task_windows(config, tasks, 0) if tasks else training_windows(dataset, config, 0))
    total = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    assert train.eval_every and train.save_every and train.log_every, "the rules require intervals"
    done = steps_done(per_epoch)
    if done and done >= total:
        raise UserError(
            f"nothing is left to do: the parent has done {done} steps ({done / per_epoch:.4g} epochs), "
            f"and this run would end at step {total}",
            f"--epochs above {done / per_epoch:.4g}, which is the new total"
            + ("" if train.max_steps is None else f", and --max-steps none or above {done}"),
            f"--epochs {-(-done // per_epoch) + train.epochs}, or --keep weights, which counts from 0",
        )
    *early, (last, _) = train.eval_every.parts
    limits = [until.steps(per_epoch) for _, until in early if until]
    if limits != sorted(set(limits)):
        raise UserError(
            f"--eval-every {train.eval_every}: its limits are the steps {listing(limits)}", "limits that rise"
        )
    return Pace(
        steps_per_epoch=per_epoch,
        total_steps=total,
        eval_every=last.steps(per_epoch),
        save_every=0 if train.save_every.unit == "seconds" else train.save_every.steps(per_epoch),
        log_every=train.log_every.steps(per_epoch),
        max_seconds=train.time_budget.amount if train.time_budget else None,
        first_step=done,
        eval_before=tuple(
            (until.steps(per_epoch), interval.steps(per_epoch)) for interval, until in early if until
        ),
        save_seconds=train.save_every.amount if train.save_every.unit == "seconds" else None,
    )


def expected_seconds(job: Job, measured: Probe) -> float:
    """Seconds of the whole run: the steps and the kept features of its stages, and its validations.

    A validation sees val, half as many training images, and what is retained.
    """
    if job.lanes:
        return _seconds_of_tasks(job, measured)
    num_val, num_test = (len(job.dataset.splits.get(split, ())) for split in ("val", "test"))
    if job.config.meta.is_on:
        num_val, num_test = (
            num * job.batch_size for num in (job.config.meta.val_episodes, job.config.meta.test_episodes)
        )
    num_images = num_val + (num_val + 1) // 2 + (0 if job.retained is None else len(job.retained.samples))
    seconds = job.pace.num_evals * num_images * measured.seconds_per_eval_image
    for stage, num_steps in enumerate(_steps_by_stage(job)):
        if num_steps:
            per_step, per_feature_image = measured.of_stage(stage)
            num_kept = job.kept_in(stage).views * len(job.dataset.training) + num_images + num_test
            seconds += num_steps * per_step + num_kept * per_feature_image
    return seconds


def _seconds_of_tasks(job: Job, measured: Probe) -> float:
    """As `expected_seconds`, where every task is validated, and no features are kept."""
    num_vals = [len(lane.dataset.splits.get("val", ())) for lane in job.lanes]
    seconds = (
        job.pace.num_evals * sum(num + (num + 1) // 2 for num in num_vals) * measured.seconds_per_eval_image
    )
    steps = enumerate(_steps_by_stage(job))
    return seconds + sum(num_steps * measured.of_stage(stage)[0] for stage, num_steps in steps)


def _steps_by_stage(job: Job) -> list[int]:
    """Where a plateau or a metric decides, a stage is taken to begin as early as it can: more is trained in it."""
    pace, begins = job.pace, [job.pace.first_step]
    for stage in job.plan.stages[1:]:
        begins.append(max(begins[-1], stage.trigger.step(pace.steps_per_epoch) or 0))
    bounds = [min(step, pace.total_steps) for step in (*begins, pace.total_steps)]
    return [end - begin for begin, end in pairwise(bounds)]


def within_budget(job: Job, measured: Probe) -> Job:
    """Shorten the run so that it fits its time budget, and its schedule with it."""
    assert job.pace.max_seconds is not None
    share = min(1.0, job.pace.max_seconds / expected_seconds(job, measured))
    first = job.pace.first_step
    total = first + max(1, int((job.pace.total_steps - first) * share))
    pace = replace(job.pace, total_steps=total)
    schedule = make_schedule(job.config.optim, total, pace.steps_per_epoch)
    log.info("time budget %gs: %d of %d steps fit", job.pace.max_seconds, total, job.pace.total_steps)
    return replace(job, pace=pace, schedule=schedule)
