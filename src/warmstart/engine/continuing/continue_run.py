"""`continue`: a child run that inherits config, data and model of its parent, and as much of its state as is asked for.

Nothing of the parent is ever written. What is kept, what begins anew and which settings have changed is printed and
recorded (`parent` and `continued` in resolved.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from warmstart.config.io import Loaded
from warmstart.console import log, table
from warmstart.engine.beginning import Beginning
from warmstart.engine.checkpoint import Saved
from warmstart.engine.continuing.foreign import first_state, optimizer_state
from warmstart.engine.continuing.older_best import copy_best
from warmstart.engine.continuing.parent import (
    ALL,
    OPTIMIZER,
    WEIGHTS,
    Parent,
    changes,
    check_config,
    check_same,
    find_bar,
    find_parent,
)
from warmstart.engine.continuing.rates import Rates, announce_rates, rates_at_start
from warmstart.engine.job import Job
from warmstart.engine.lessons.start import hand_on_start, start_kept, usable_features
from warmstart.engine.optimizer import OptimizerState, without_settings
from warmstart.engine.prepare import Prepared
from warmstart.engine.stages import has_same_stages, stage_kept, without_stages
from warmstart.engine.state import TrainState
from warmstart.errors import UserError
from warmstart.run import layout, reader, writer
from warmstart.run.lineage import reference_of

__all__ = ["Child", "beginning_of", "find_parent"]


class Child(Beginning):
    """The beginning of a run that continues `parent`; `with_info` writes document 002's continue_info.yaml.

    `later` are the phases that come after it, as they are recorded.
    """

    def __init__(self, parent: Parent, with_info: bool = False, later: Sequence[dict[str, Any]] = ()) -> None:
        self.parent, self._with_info, self._later = parent, with_info, later
        self._loaded: Loaded | None = None

    def check(self, loaded: Loaded) -> None:
        """UserError for settings that contradict the parent. Called before anything else."""
        check_config(self.parent, loaded.config)
        self._loaded = loaded

    def steps_done(self, steps_per_epoch: int) -> int:
        parent = self.parent
        if parent.keep != ALL:
            return 0
        if parent.foreign is not None:
            if parent.foreign.epochs_done is None:
                raise UserError(
                    f"{parent.name} does not say at which epoch it was saved, so --keep all has no count to go on with",
                    "a checkpoint with its epoch",
                    "--keep optimizer, or --keep weights",
                )
            return parent.foreign.epochs_done * steps_per_epoch
        assert parent.run is not None and parent.step is not None, "a parent is a run or a file"
        before = parent.run.resolved["pace"]["steps_per_epoch"]
        if steps_per_epoch != before:
            raise UserError(
                f"--keep all goes on counting the parent's steps, {before} an epoch, and here an epoch has "
                f"{steps_per_epoch}",
                "the parent's data, --batch-size, --accumulate, --limit and --sampler",
                "--keep optimizer, or --keep weights, which count from 0",
            )
        return parent.step

    def complete(self, prepared: Prepared) -> Prepared:
        assert self._loaded is not None, "checked first"
        parent = self.parent
        check_same(parent, prepared)
        bar = find_bar(parent, prepared)
        job = replace(prepared.job, bar=bar)
        rates = rates_at_start(parent, job) if parent.keep == ALL else None
        job, features = usable_features(job, parent.run, self.state(job)[1], prepared.resolved["features"])
        lineage = {
            "run": parent.name if parent.run is None else str(parent.run.path),
            "step": parent.step,
            "lr": None if parent.run is None else parent.run.resolved["lr"],
            "keep": parent.keep,
            "bar": None if bar is None else asdict(bar),
        }
        continued = {
            "changes": changes(parent, self._loaded.config, self._loaded.origins),
            "kept": [list(row) for row in self._kept(job)],
            "rates": None if rates is None else asdict(rates),
            "later": list(self._later),
        }
        decided = {"parent": lineage, "continued": continued, "features": features}
        return Prepared(job, {**prepared.resolved, **decided})

    def announce(self, prepared: Prepared) -> None:
        told, parent = prepared.resolved["continued"], self.parent
        log.info("continues %s (--keep %s); nothing of it is changed", parent.name, parent.keep)
        for note in () if parent.foreign is None else parent.foreign.notes:
            log.info("parent: %s", note)
        rows = [[row[key] if row[key] is not None else "none" for key in row] for row in told["changes"]]
        log.info(
            "\n%s",
            table("changed settings", ("setting", "parent", "here", "by"), rows)
            if rows
            else "no setting changed",
        )
        log.info("\n%s", table("of the parent", ("what", "", "how"), told["kept"], left=3))
        if told["rates"] is not None:
            announce_rates(Rates(**told["rates"]), prepared.job)

    def write(self, prepared: Prepared) -> None:
        run, best = self.parent.run, self.parent.best_step
        if self._holds_older_best and run is not None and best is not None:
            copy_best(run, best, prepared.job)
        hand_on_start(self.parent.run, prepared.job)
        if self._with_info:
            writer.write_text(prepared.job.run / layout.CONTINUE_INFO, self._info(prepared.job))

    def state(self, job: Job) -> tuple[TrainState, Saved | None]:
        parent, saved, bar = self.parent, self.parent.saved, job.bar
        state = first_state(parent.foreign if parent.keep == ALL else None, job.pace.first_step)
        state.epoch, state.window = divmod(state.step, job.pace.steps_per_epoch)
        if saved is not None and parent.keep == ALL:
            # What belongs to the run and not to its training begins anew; the start is measured (frozen_stage None).
            state = replace(saved.state, seconds=0.0, stop_reason=None, frozen_stage=None, frozen_hash=None)
            state.failed_steps, state.num_recoveries = [], 0
            state = state if has_same_stages(parent.run, job) else without_stages(state)
        if bar is not None:
            state.best_value, state.best_step = bar.value, self._best_step(job)
        if parent.keep == WEIGHTS:
            return state, None
        if saved is None:
            return state, _fresh(job, self._optimizer(job)[0])
        saved = replace(saved, state=state, optimizer=without_settings(job.config.optim, saved.optimizer))
        return state, saved if parent.keep == ALL else replace(saved, averaged={}, scaler={}, random=[])

    @property
    def _holds_older_best(self) -> bool:
        """Whether the parent's best goes along as a checkpoint of its own."""
        run, step, best = self.parent.run, self.parent.step, self.parent.best_step
        if self.parent.keep != ALL or run is None or step is None or best is None or best >= step:
            return False
        return reader.find_damage(run.checkpoint(best)) is None

    def _best_step(self, job: Job) -> int | None:
        """The step of this run that holds the weights behind the bar, if one does."""
        parent = self.parent
        if parent.run is None:
            return job.pace.first_step  # they were measured themselves
        averages = parent.saved is not None and bool(parent.saved.averaged)  # the training weights are others
        loses_averages = averages and (parent.keep == OPTIMIZER or job.config.train.ema is None)
        # A parent that never beat its own bar passes that on: nobody here has the weights behind it.
        is_own = job.bar is not None and job.bar.run == str(parent.run.path)
        is_start = parent.best_step == parent.step or (parent.best_step is None and is_own)
        if is_start and not (loses_averages and parent.keep != WEIGHTS):
            return job.pace.first_step
        return parent.best_step if self._holds_older_best else None

    def _optimizer(self, job: Job) -> tuple[OptimizerState | None, str]:
        """What is carried over of the optimizer, by parameter name, and in words."""
        parent = self.parent
        if parent.foreign is not None:
            return optimizer_state(parent.foreign, job)
        assert parent.saved is not None, "the state was read with the parent"
        tensors, values = parent.saved.optimizer
        stateful = {path.partition(".")[2] for path in tensors} | set(values["parameters"])
        names = [name for row in job.plan.rows for name in row.trainable]
        num = sum(name in stateful for name in names)
        return (tensors, values), f"moments of {num} of {len(names)} parameters, by name"

    def _kept(self, job: Job) -> Iterator[tuple[str, str, str]]:
        """(what, kept or new, how) for everything that a parent's state consists of."""
        parent, keep, schedule = self.parent, self.parent.keep, job.schedule
        saved, is_all = parent.saved, self.parent.keep == ALL
        where = parent.name if parent.step is None else f"step {parent.step}"
        yield (
            "weights",
            "kept",
            f"of {where}"
            + (", the training ones (not the averaged)" if saved is not None and saved.averaged else ""),
        )
        if keep == WEIGHTS:
            yield "optimizer state", "new", "begins at nothing"
        else:
            carried, words = self._optimizer(job)
            yield "optimizer state", "kept" if carried is not None else "NOT kept", words
        first, per_epoch = job.pace.first_step, job.pace.steps_per_epoch
        count = f"goes on at step {first} (epoch {first / per_epoch:.4g})" if is_all else "counts from 0"
        yield "step and epoch", "kept" if is_all else "new", count
        told = f"{schedule.kind} over {job.pace.total_steps} steps, {schedule.warmup_steps} of them warmup"
        yield "schedule", "kept" if is_all else "new", told + (f", as at step {first}" if is_all else "")
        if saved is not None and is_all:
            bad, patience = saved.state.num_bad, job.config.train.patience
            yield "random numbers", "kept", "of dropout; order and augmentation follow from seed and epoch"
            limit = "" if patience is None else f", patience {patience}"
            yield "early stopping", "kept", f"{bad} validations without a new best{limit}"
            yield from stage_kept(parent.run, saved.state, job)
            if schedule.kind == "plateau":
                yield "plateau factor", "kept", f"{saved.state.plateau.factor:g}"
            if saved.state.rescue_factor != 1:
                yield "rescues", "kept", f"{saved.state.rescue_factor:g} of every rate"
        else:
            lacking = "" if not is_all else "; the file holds none"
            yield "random numbers", "new", f"from --seed {job.config.train.seed}{lacking}"
            yield "early stopping", "new", f"counts from 0{lacking}"
        yield from self._kept_beside(job)

    def _kept_beside(self, job: Job) -> Iterator[tuple[str, str, str]]:
        yield from start_kept(self.parent.run, job)
        saved, decay, bar = self.parent.saved, job.config.train.ema, job.bar
        had = saved is not None and bool(saved.averaged)
        if decay is not None:
            goes_on = had and self.parent.keep == ALL
            yield "averaged weights", "kept" if goes_on else "new", f"decay {decay:g}"
        elif had:
            yield "averaged weights", "NOT kept", "--ema is none here"
        if bar is None:
            yield "best", "none", "there are no validation images"
        else:
            where = bar.run if bar.step is None else f"{bar.run}@{bar.step}"
            yield (
                "best",
                "kept",
                f"val {bar.metric} {bar.value:.4f} of {where}, {bar.origin}: this is to beat",
            )

    def _info(self, job: Job) -> str:
        """Document 002's file. Its F-score is `fscore_per_batch`, as in its program, of one class per image macro F1;
        or the F-score that selects.
        """
        parent, bar = self.parent, job.bar
        best: dict[str, Any] = {}
        if parent.run is not None:
            rows = [
                row
                for row in parent.run.evals.rows
                if row["split"] == "val" and row["step"] == parent.best_step
            ]
            best = rows[0] if rows else {}
        names = ("fscore_per_batch", "fscore", "f1")  # runs of older versions have no fscore_per_batch
        f_score = (
            bar.value
            if bar is not None and bar.metric in names
            else next((best[name] for name in names if name in best), None)
        )
        values = {
            "continued_from": parent.name,
            "mode": {ALL: "preserve", OPTIMIZER: "hybrid", WEIGHTS: "reset"}[parent.keep],
            "reset_optimizer": parent.keep == WEIGHTS,
            "start_epoch": job.pace.first_step // job.pace.steps_per_epoch,
            "previous_best_f_score": f_score,
            "previous_best": None if bar is None else {bar.metric: bar.value},
        }
        return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def beginning_of(run: reader.Run) -> Beginning:
    """How a run began, as it recorded that: for one that ended before its first checkpoint.

    Raises:
        UserError: its parent is gone.
    """
    if "continued" not in run.resolved:
        return Beginning()
    lineage = run.resolved["parent"]
    return Child(find_parent(reference_of(lineage), lineage["keep"]))


def _fresh(job: Job, optimizer: OptimizerState | None) -> Saved:
    """The state of a foreign checkpoint: its weights, which the model has already, and its moments."""
    nothing: OptimizerState = ({}, {"parameters": {}, "groups": {}})
    return Saved(
        state=TrainState(),
        weights=job.built.module.state_dict(),
        averaged={},
        scaler={},
        optimizer=optimizer or nothing,
        random=[],
        num_threads=torch.get_num_threads(),
    )
