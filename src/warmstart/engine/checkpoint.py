"""A checkpoint holds the full state: weights, optimizer by name, averaged weights, random numbers, counters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from warmstart.console import log
from warmstart.engine.background import Background
from warmstart.engine.job import Job
from warmstart.engine.learner import Learner
from warmstart.engine.optimizer import OptimizerState, state_by_name
from warmstart.engine.state import TrainState
from warmstart.errors import UserError
from warmstart.models.build import metadata_for
from warmstart.run import layout, reader, writer

_NUM_KEPT = 2  # the newest and one to fall back on; BEST is kept besides


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

    @property
    def num_processes(self) -> int:
        return len(self.random)


def save_checkpoint(job: Job, state: TrainState, learner: Learner, background: Background) -> None:
    """Copy the full state; beside the loop write it as the newest checkpoint, and remove what is no longer kept.

    Raises:
        UserError: the weights are not finite; or, raised by the next call of `background`, the disk is full.
            Older checkpoints are intact.
    """
    _check_finite(job, state)
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
    weights, others, text = _copies(used), _copies(kept), json.dumps(record, indent=1).encode()
    step, is_best = state.step, state.best_step == state.step

    def write() -> None:
        files = {
            layout.MODEL: save(weights, metadata_for(job.built)),
            layout.STATE_TENSORS: save(others),
            layout.STATE: text,
        }
        writer.write_checkpoint(job.run, step, files)
        if is_best:
            writer.mark_best(job.run, step)
        writer.prune_checkpoints(job.run, _NUM_KEPT)

    background.run(write)


def load_checkpoint(run: Path) -> tuple[int, Saved]:
    """The newest intact checkpoint of a run; damaged newer ones are named and passed over.

    Raises:
        UserError: the run has no intact checkpoint.
    """
    for step in reversed(reader.Run(run).checkpoint_steps()):
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
        "start again with `warmstart finetune --config " + str(run / layout.CONFIG) + "`",
    )


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
    if not bool(torch.stack([p.isfinite().all() for p in job.built.module.parameters()]).all()):
        raise UserError(
            f"the weights are not finite after step {state.step}",
            "finite weights",
            f"lower --lr (now {job.config.optim.lr:g}), add --warmup 2epochs or a smaller --clip; "
            f"the last checkpoint in {job.run} is from before that"
            if state.step
            else "start from other weights",
        )


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
