"""Memory and time of a few real steps, measured on a copy so that the run itself is untouched."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.data.batches import epoch_order, epoch_windows, evaluation_batches, training_batches
from warmstart.engine.job import Job
from warmstart.engine.optimizer import make_optimizer
from warmstart.engine.step import Arithmetic, make_scaler, train_window
from warmstart.inference.device import peak_bytes
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import predict_outputs

_NUM_STEPS = 4  # the first pays for allocation and is not counted
_NUM_EVAL_BATCHES = 2


@dataclass(frozen=True)
class Probe:
    """Seconds per optimizer step and per evaluated image, and peak memory in bytes (None: not measurable)."""

    seconds_per_step: float
    seconds_per_eval_image: float
    peak_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(job: Job) -> Probe:
    """Run a few steps of the run's last stage (the costliest: most is trainable) on a copy of the model."""
    module = copy.deepcopy(job.built.module)
    epoch = job.plan.stage_epochs[-1]
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        seconds = _train_steps(job, module, epoch)
        per_image = _evaluate(job, module)
    return Probe(seconds, per_image, peak_bytes(job.device))


def _train_steps(job: Job, module: nn.Module, epoch: int) -> float:
    config, samples = job.config, job.dataset.splits["train"]
    optimizer = make_optimizer(config.optim, apply_stage(module, job.plan, epoch), job.device)
    set_modes(module, job.plan, job.built.blocks, epoch)
    inputs = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
    order = epoch_order(len(samples), config.train.seed, 0)
    windows = epoch_windows(order, config.data.batch_size, config.optim.accumulate)[:_NUM_STEPS]
    batches = training_batches(samples, job.train_view, windows, 0, job.workers)
    arithmetic = Arithmetic(job.precision, config.optim.clip, make_scaler(job.precision, job.device))
    times = []
    for window in windows:
        start = time.perf_counter()
        micro = islice(batches, len(window))
        train_window(module, micro, inputs, job.task.objective, optimizer, arithmetic)
        _wait(job.device)
        times.append(time.perf_counter() - start)
    counted = times[1:] or times
    return sum(counted) / len(counted)


def _evaluate(job: Job, module: nn.Module) -> float:
    samples = job.dataset.splits.get("val", job.dataset.splits["train"])
    inputs = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
    all_batches = evaluation_batches(
        samples, job.built.preprocessing, job.dataset.native, job.eval_batch_size, job.workers
    )
    batches = list(islice(all_batches, _NUM_EVAL_BATCHES))
    start = time.perf_counter()
    predict_outputs(module, batches, inputs, job.precision)
    _wait(job.device)
    return (time.perf_counter() - start) / sum(len(batch) for batch in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
