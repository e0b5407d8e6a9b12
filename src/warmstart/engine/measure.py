"""Measuring a model while it trains, and choosing the best: on val alone, never on test."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import log
from warmstart.data import counters
from warmstart.data.episodes import has_episodes
from warmstart.data.sources import Samples
from warmstart.engine.clock import Clock
from warmstart.engine.feed import Feed
from warmstart.engine.job import Job
from warmstart.engine.state import TrainState
from warmstart.errors import UserError
from warmstart.inference.predictions import write_predictions
from warmstart.inference.separation import ClassSums, separation
from warmstart.records import RETAIN
from warmstart.run import layout, reader, writer
from warmstart.run.lineage import verdict
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_errors import likely_mislabelled


def train_subset(samples: Samples, size: int, seed: int) -> Samples:
    """A fixed part of the training images, on which the gap to val is measured."""
    if size >= len(samples):
        return samples
    chosen = counters.generator(seed, 0, counters.TRAIN_SUBSET).permutation(len(samples))[:size]
    return samples.subset(np.sort(chosen))


def measure(job: Job, state: TrainState, weights: nn.Module, feed: Feed) -> dict[str, dict[str, Any]]:
    """Evaluate on val and on a fixed train subset (the start: on test too), write the rows; metrics by split."""
    splits = job.dataset.splits
    parts = {"val": splits["val"]} if "val" in splits else {}
    is_start = state.step == job.pace.first_step
    if is_start and "test" in splits:
        parts["test"] = splits["test"]
    # Half of val's images: the gap then has 1.22 times the standard error that as many as val's would give.
    size = (len(splits["val"]) + 1) // 2 if "val" in splits else min(1000, len(splits["train"]))
    # Without what training has lost meanwhile; val and test are measured whole or not at all.
    train = (
        splits["train"]
        if job.config.meta.is_on
        else train_subset(splits["train"], size, job.config.train.seed)
    )
    train = train.without(feed.unreadable())
    if not job.config.meta.is_on or has_episodes(train.targets, job.config.meta):
        parts["train"] = train
    rows: dict[str, dict[str, Any]] = {}
    task = job.task
    for split, samples in parts.items():
        outputs, measured = _look(job, weights, feed, samples, split)
        if split == "val" and isinstance(task, Classification):  # val is the first; test never chooses
            task = task.decided(outputs, samples.targets)
            state.threshold = None if task.decision is None else task.decision.threshold
            measured |= _doubtful(task, outputs, samples.targets)
        rows[split] = task.evaluate(outputs, samples.targets) | measured
        write_eval_row(job, state, split, len(samples), rows[split])
        if split != "train" and is_start:
            keep_predictions(job, split, samples, outputs, state.step)
        if is_start and not _is_finite(job, outputs, rows[split]):
            raise _not_finite()
    if is_start and math.isnan(rows.get("val", {}).get(job.select_by, 0.0)):
        raise UserError(
            "no pixel of the val images has a class: they cannot choose the best step",
            "val images whose masks hold classes",
            "look at --ignore, and at the masks of val",
        )
    if job.retained is not None:
        rows[RETAIN] = _measure_retained(job, state, weights, feed)
    return rows


def _measure_retained(job: Job, state: TrainState, weights: nn.Module, feed: Feed) -> dict[str, float]:
    """What is left of what the start model knew; predictions of the start, the best and this step are kept."""
    kept = job.retained
    assert kept is not None, "asked for only where something is retained"
    outputs = feed.outputs(weights, kept.samples, RETAIN, kept.native)
    row = job.task.evaluate(outputs, kept.samples.targets)
    write_eval_row(job, state, RETAIN, len(kept.samples), row)
    keep_predictions(job, RETAIN, kept.samples, outputs, state.step)
    if job.world.is_main:
        steps = (job.pace.first_step, state.best_step, state.step)
        needed = {layout.predictions_name(RETAIN, step) for step in steps if step is not None}
        for path in (job.run / layout.PREDICTIONS).glob(f"{RETAIN}@*"):
            if path.name not in needed:
                path.unlink()
    return row


def _look(
    job: Job, weights: nn.Module, feed: Feed, samples: Samples, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Outputs, and how far the classes lie apart in front of the classifier, which takes one class per image."""
    if not isinstance(job.task, Classification):
        return feed.outputs(weights, samples, split), {}
    sums = ClassSums(weights.get_submodule(job.built.head), len(job.task.classes))
    outputs = feed.outputs(weights, samples, split, watch=sums)
    own = sums.counts.numpy(), sums.sums.numpy(), sums.squares.numpy()
    found = [part for part in job.world.gather(own) if part[1].shape[1]]  # one may have had no image
    # A classifier that is called otherwise, or after out of memory a part that was seen twice.
    if sum(part[0].sum() for part in found) != len(samples):
        return outputs, {}
    counts, totals, squares = (np.sum([part[place] for part in found], axis=0) for place in range(3))
    return outputs, separation(counts, totals, squares, job.task.classes)


def _doubtful(task: Classification, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Score of the most confident mistake (0 without one), and how many labels look wrong; `evaluate` names them."""
    scores = task.scores(outputs)
    if not np.isfinite(scores).all():
        return {}
    answers = task.answers_by(scores)
    wrong = np.flatnonzero(answers != targets)
    return {
        "most_confident_mistake": float(scores[wrong, answers[wrong]].max(initial=0)),
        "likely_mislabelled": len(likely_mislabelled(scores, targets)[0]),
    }


def _is_finite(job: Job, outputs: np.ndarray, row: dict[str, float]) -> bool:
    """Of masks, the counts: their loss is not a number where every pixel is ignored."""
    return bool(np.isfinite(outputs).all()) if job.task.statistics else math.isfinite(row["loss"])


def _not_finite() -> UserError:
    return UserError(
        "the start model gives outputs that are not finite",
        "finite outputs before anything is trained",
        "look at the weights with `warmstart check`, and at --mean and --std",
    )


def keep_predictions(job: Job, split: str, samples: Samples, outputs: np.ndarray, step: int) -> None:
    """predictions/SPLIT@STEP.parquet: what the start model said; the best one's are written after the run."""
    path = job.run / layout.PREDICTIONS / layout.predictions_name(split, step, job.lane)
    scores = job.task.scores(outputs)
    if job.config.meta.is_on:
        names = [f"episode {number}" for number in range(len(scores))]
        writer.write_whole(path, write_predictions(names, None, scores, job.task.metrics[:1]))
        return
    targets = samples.targets if job.task.statistics is None else None
    writer.write_whole(path, write_predictions(samples.ids, targets, scores, job.task.classes))


def measure_best_on_test(job: Job, state: TrainState, clock: Clock) -> None:
    """Of a training on episodes, the test of the best step: a row and the accuracies, beside those of the start.

    What fine-tunes to classes is evaluated as any checkpoint is; episodes need the run's own way through them.
    """
    _, step, file = reader.model_file(str(job.run))
    path = job.run / layout.PREDICTIONS / layout.predictions_name("test", step or 0)
    if path.exists():  # the start is the best, or the run was killed at its very end
        return
    job.built.module.load_state_dict(load_file(file))
    at_best, samples = replace(state, step=step), job.dataset.splits["test"]
    outputs = Feed(job, clock, at_best).outputs(job.built.module, samples, "test")
    row = job.task.evaluate(outputs, samples.targets)
    write_eval_row(job, at_best, "test", len(samples), row)
    keep_predictions(job, "test", samples, outputs, at_best.step)
    log.info("test of step %d: %s", at_best.step, job.task.headline(row))


def write_eval_row(
    job: Job, state: TrainState, split: str, num_samples: int, metrics: dict[str, Any]
) -> None:
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": round(state.step / job.pace.steps_per_epoch, 4),
        "split": split,
        **({} if job.lane is None else {"task": job.lane}),
        "num_samples": num_samples,
        **metrics,
    }
    writer.append_row(job.run / layout.EVALS, row)


def update_best(job: Job, state: TrainState, metrics: dict[str, float]) -> bool:
    """Whether this step is the new best; changes the bar and the count towards early stopping in `state`.

    Ties go to the earlier step. Step 0 takes part only if its head was kept, or is adapted by every episode: a new head
    is a coin toss.
    The start of a run that continues another one changes nothing: the parent's best is the bar already.
    """
    is_start = state.step == job.pace.first_step
    if not metrics or (is_start and (job.bar is not None or state.step > 0)):
        return False
    name = job.select_by
    value = metrics[name]
    if state.step == 0 and job.built.head_change.kind != "kept" and not job.config.meta.is_on:
        return False
    sign = SELECTION_METRICS[name]
    if math.isnan(value):  # the outputs were not finite: never a best, whatever it is compared with
        state.num_bad += 1
        return False
    if state.best_value is None or sign * (value - state.best_value) > job.config.train.min_delta:
        state.num_recoveries += state.num_bad > 0
        state.best_value, state.best_step, state.num_bad = value, state.step, 0
        return True
    state.num_bad += 1
    return False


def log_validation(job: Job, state: TrainState, rows: dict[str, dict[str, float]], is_best: bool) -> None:
    metrics = rows.get("val", {})
    if RETAIN in rows:
        log.info("step %d/%d  retained %s", state.step, job.pace.total_steps, job.task.headline(rows[RETAIN]))
    if not metrics:
        return
    best = "new best" if is_best else ""
    if job.bar is not None:
        best = f"{_against(job, state, metrics)}{', new best' if is_best else ''}"
    elif not is_best and state.best_value is not None:
        best = f"best {job.select_by} {state.best_value:.4f} at step {state.best_step}"
    log.info(
        "step %d/%d  epoch %.4g  val %s  %s",
        state.step,
        job.pace.total_steps,
        state.step / job.pace.steps_per_epoch,
        f"{job.select_by} {metrics[job.select_by]:.4f}" if job.lanes else job.task.headline(metrics),
        best,
    )


def _against(job: Job, state: TrainState, metrics: dict[str, float]) -> str:
    """This validation beside the best of the parent."""
    bar = job.bar
    assert bar is not None, "only a run that continues another one has a bar"
    if state.step == job.pace.first_step:
        return f"the start; to beat: {bar.metric} {bar.value:.4f}"
    return verdict(bar.gain(metrics[bar.metric]), job.config.train.min_delta)
