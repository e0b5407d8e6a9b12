"""A checkpoint holds the full state: weights, optimizer by name, averaged weights, random numbers, counters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from warmstart.console import log
from warmstart.engine.background import Background
from warmstart.engine.job import Job
from warmstart.engine.learner import Learner
from warmstart.engine.optimizer import OptimizerState, state_by_name
from warmstart.engine.state import NotFinite, TrainState
from warmstart.errors import UserError, listing
from warmstart.models.build import BuiltModel, metadata_for
from warmstart.models.tensor_file import TensorFile
from warmstart.run import layout, reader, writer
from warmstart.run.lineage import reference_of


@dataclass(frozen=True)
class Saved:
    """What a checkpoint gives back."""

    state: TrainState
    weights: dict[str, torch.Tensor]  # of the model that trains
    averaged: dict[str, torch.Tensor]  # of the EMA, or empty
    scaler: dict[str, Any]  # of fp16's gradients, or empty
    optimizer: OptimizerState
    random: list[dict[str, torch.Tensor]]  # by rank
    num_threads: int
    hints: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # projections of the student's maps, or empty

    @property
    def num_processes(self) -> int:
        return len(self.random)


def save_checkpoint(
    job: Job,
    state: TrainState,
    learner: Learner,
    background: Background,
    is_planned: bool = True,
    goes_on: bool = True,
) -> None:
    """Copy the full state; beside the loop write it as the newest checkpoint, and remove what is no longer kept.

    A rescue goes back to a planned one: where a run happened to be interrupted makes no difference to it. Unless the
    training `goes_on` meanwhile, nothing is copied, and the file is waited for.

    Raises:
        NotFinite: the weights.
        UserError: raised by the next call of `background`: the disk is full. Older checkpoints are intact.
    """
    _check_finite(job, state)
    if is_planned:
        state.good_step = state.step
    world = job.world
    world.check_equal_weights(job.built.module)
    random = world.gather(_random_states(job.device))
    if not world.is_main:
        return
    ema, scaler = learner.ema, learner.scaler
    used = learner.weights_to_use(job.built.module).state_dict()
    tensors, values = state_by_name(learner.optimizer)
    kept = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    if ema is not None:
        kept |= {f"raw.{name}": tensor for name, tensor in job.built.module.state_dict().items()}
        kept["ema.n_averaged"] = ema.n_averaged
    if learner.hints is not None:
        kept |= {f"hints.{name}": tensor for name, tensor in learner.hints.state_dict().items()}
    for rank, states in enumerate(random):
        kept |= {f"random.{rank}.{name}": tensor for name, tensor in states.items()}
    record = {
        "format": layout.FORMAT_VERSION,
        "state": state.to_json(),
        "optimizer": values,
        "scaler": scaler.state_dict() if scaler is not None else {},
        "num_threads": torch.get_num_threads(),
        "num_processes": world.size,
    }
    if goes_on:
        used, kept = _copies(used), _copies(kept)
    metadata, text = metadata_for(_answering(job, state)), json.dumps(record, indent=1).encode()
    step, good_step, is_best = state.step, state.good_step, state.best_step == state.step
    files = {layout.MODEL: TensorFile(used, metadata), layout.STATE_TENSORS: TensorFile(kept)}

    def write() -> None:
        writer.write_checkpoint(job.run, step, {**files, layout.STATE: text})
        if is_best:
            writer.mark_best(job.run, step)
        writer.prune_checkpoints(job.run, job.config.train.keep_checkpoints, good_step)

    background.run(write)
    if not goes_on:
        background.wait()


def _answering(job: Job, state: TrainState) -> BuiltModel:
    """The model with the threshold of these weights, where val has just chosen one."""
    decision = job.built.decision
    if decision is None or decision.threshold is not None or state.threshold is None:
        return job.built
    rule = str(job.config.task.threshold)
    return replace(job.built, decision=replace(decision, threshold=state.threshold, rule=rule))


def load_checkpoint(run: Path, newest: int | None = None) -> tuple[int, Saved]:
    """The newest intact checkpoint of a run, up to step `newest`; damaged newer ones are named and passed over.

    A parent's best, which a run that continues it may hold beside its own, is none of them.

    Raises:
        UserError: the run has no intact checkpoint.
    """
    first = reader.Run(run).resolved["pace"].get("first_step", 0)
    steps = [step for step in reader.Run(run).checkpoint_steps() if step >= first]
    for step in reversed([step for step in steps if newest is None or step <= newest]):
        folder = run / layout.CHECKPOINTS / layout.checkpoint_name(step)
        damage = reader.find_damage(folder)
        if damage is None:
            return step, _read(folder)
        log.warning(
            "the checkpoint of step %d is damaged (%s): falling back to the one before it", step, damage
        )
    raise UserError(
        f"{run} has no intact checkpoint to resume from",
        "at least one checkpoint; the first is written before step 1",
        f"start again: `warmstart {_verb(reader.Run(run))} --config {run / layout.CONFIG} --output-dir NEW`",
    )


def _verb(run: reader.Run) -> str:
    """How the run was begun."""
    if "continued" not in run.resolved:
        return "finetune"
    return f"continue {reference_of(run.resolved['parent'])} --keep {run.resolved['parent']['keep']}"


def load_step(run: reader.Run, step: int) -> Saved:
    """One checkpoint of a run.

    Raises:
        UserError: it is not kept any more, or damaged.
    """
    steps = run.checkpoint_steps()
    damage = reader.find_damage(run.checkpoint(step)) if step in steps else "it is not kept"
    if damage is not None:
        raise UserError(
            f"the checkpoint of step {step} in {run.path} cannot be read whole: {damage}",
            f"one of the steps kept: {listing(steps)}",
            "--keep weights needs nothing but the weights of a step",
        )
    return _read(run.checkpoint(step))


def mend_pointers(run: reader.Run, step: int, state: TrainState) -> None:
    """LAST and BEST as of `step`: the process may have ended between a checkpoint and its pointers, or fallen back."""
    if run.pointer(layout.LAST) != step:
        writer.write_text(run.path / layout.CHECKPOINTS / layout.LAST, layout.checkpoint_name(step) + "\n")
    best = state.best_step
    if best is not None and run.pointer(layout.BEST) != best and run.checkpoint(best).is_dir():
        writer.mark_best(run.path, best)


def _read(folder: Path) -> Saved:
    used = _in_memory(folder / layout.MODEL)
    kept = _in_memory(folder / layout.STATE_TENSORS)
    record = json.loads((folder / layout.STATE).read_text())
    raw = _below(kept, "raw.")
    averaged = (
        {**{f"module.{name}": tensor for name, tensor in used.items()}, **_below(kept, "ema.")} if raw else {}
    )
    return Saved(
        state=TrainState.from_json(record["state"]),
        weights=raw or used,
        averaged=averaged,
        scaler=record["scaler"],
        optimizer=(_below(kept, "optimizer."), record["optimizer"]),
        random=[_below(kept, f"random.{rank}.") for rank in range(record["num_processes"])],
        num_threads=record["num_threads"],
        hints=_below(kept, "hints."),
    )


def restore_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on with the random numbers of a checkpoint."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the CPU and of the run's own device, whose number may be another one when the run is resumed."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _check_finite(job: Job, state: TrainState) -> None:
    """A loss is finite one step longer than the weights: without this look the broken ones would be saved."""
    is_start = state.step == job.pace.first_step
    # What is frozen stays as it was at the start.
    looked_at = [p for p in job.built.module.parameters() if p.requires_grad or is_start]
    if bool(torch.stack([p.isfinite().all() for p in looked_at]).all()):
        return
    if is_start:
        raise UserError(
            "the weights are not finite before the first step", "finite weights", "start from other weights"
        )
    raise NotFinite(state.step, "the weights are", job.cure)


def _copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them, contiguous and each with memory of its own, which the next step does not change."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _in_memory(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of their own: those of `load_file` keep the file open, and Windows could not remove it later."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
