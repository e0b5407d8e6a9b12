"""A checkpoint holds the full state: weights, optimizer by name, averaged weights, random numbers, counters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.optim.swa_utils import AveragedModel

from warmstart.console import log
from warmstart.engine.job import Job
from warmstart.engine.optimizer import state_by_name
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
    optimizer: tuple[dict[str, torch.Tensor], dict[str, Any]]
    random: dict[str, torch.Tensor]
    num_threads: int


def weights_to_use(module: nn.Module, ema: AveragedModel | None) -> nn.Module:
    """The weights that are measured and saved: averaged ones where they are kept."""
    return ema.module if ema is not None else module


def save_checkpoint(
    job: Job, state: TrainState, ema: AveragedModel | None, optimizer: torch.optim.Optimizer
) -> None:
    """
    Raises:
        UserError: the disk is full; older checkpoints are intact.
    """
    used = weights_to_use(job.built.module, ema).state_dict()
    tensors, values = state_by_name(optimizer)
    kept = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    if ema is not None:
        kept |= {f"raw.{name}": tensor for name, tensor in job.built.module.state_dict().items()}
        kept["ema.n_averaged"] = ema.n_averaged
    kept |= {f"random.{name}": tensor for name, tensor in _random_states().items()}
    record = {
        "format": layout.FORMAT_VERSION,
        "state": state.to_json(),
        "optimizer": values,
        "num_threads": torch.get_num_threads(),
    }
    writer.write_checkpoint(
        job.run,
        state.step,
        {
            layout.MODEL: save(_plain(used), metadata_for(job.built)),
            layout.STATE_TENSORS: save(_plain(kept)),
            layout.STATE: json.dumps(record, indent=1).encode(),
        },
    )
    if state.best_step == state.step:
        writer.mark_best(job.run, state.step)
    writer.prune_checkpoints(job.run, _NUM_KEPT)


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


def _read(folder: Path) -> Saved:
    used = load_file(folder / layout.MODEL)
    kept = load_file(folder / layout.STATE_TENSORS)
    record = json.loads((folder / layout.STATE).read_text())
    raw = _below(kept, "raw.")
    averaged = (
        {**{f"module.{name}": tensor for name, tensor in used.items()}, **_below(kept, "ema.")} if raw else {}
    )
    return Saved(
        state=TrainState.from_json(record["state"]),
        weights=raw or used,
        averaged=averaged,
        optimizer=(_below(kept, "optimizer."), record["optimizer"]),
        random=_below(kept, "random."),
        num_threads=record["num_threads"],
    )


def restore_random(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda") and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors wants each tensor contiguous and with memory of its own."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        plain[name] = own.clone() if own.numel() and own.data_ptr() in seen else own
        seen.add(plain[name].data_ptr())
    return plain


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
