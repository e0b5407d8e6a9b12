"""Memory and time of a few real steps, measured on a copy so that the run itself is untouched."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.data.batches import evaluation_batches, training_batches
from warmstart.engine.job import Job
from warmstart.engine.optimizer import make_optimizer
from warmstart.engine.step import Arithmetic, make_scaler, train_window
from warmstart.inference.cut import Tail, prefix_features
from warmstart.inference.device import peak_bytes
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.predictor import predict_outputs

_NUM_STEPS = 4  # the first pays for allocation and is not counted
_NUM_EVAL_BATCHES = 2


@dataclass(frozen=True)
class Probe:
    """Seconds per optimizer step, per evaluated image, and per image whose features are computed once.

    `peak_bytes` is the peak memory (None: not measurable).
    """

    seconds_per_step: float
    seconds_per_eval_image: float
    seconds_per_feature_image: float
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
        seconds, per_feature_image = _train_steps(job, module, epoch)
        per_image = _evaluate(job, module)
    return Probe(seconds, per_image, per_feature_image, peak_bytes(job.device))


class _Parts:
    """The part of the model that is trained, what it takes of a batch, and what computing features costs."""

    def __init__(self, job: Job, module: nn.Module) -> None:
        self._job, self._module = job, module
        self._buffer = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
        height, width, channels = job.train_view.shape
        self.trained = module if job.cut is None else Tail(module, job.cut, (channels, height, width))
        self.seconds, self.num_images = 0.0, 0

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        tensor = self._buffer(images)
        if self._job.cut is None:
            return tensor
        start = time.perf_counter()
        modes = {module: module.training for module in self._module.modules()}
        tensor = prefix_features(self._module, self._job.cut, tensor).clone()
        for module, is_training in modes.items():
            module.training = is_training
        _wait(self._job.device)
        self.seconds, self.num_images = (
            self.seconds + time.perf_counter() - start,
            self.num_images + len(images),
        )
        return tensor

    @property
    def per_feature_image(self) -> float:
        return self.seconds / self.num_images if self.num_images else 0.0


def _train_steps(job: Job, module: nn.Module, epoch: int) -> tuple[float, float]:
    config, samples = job.config, job.dataset.splits["train"]
    optimizer = make_optimizer(config.optim, apply_stage(module, job.plan, epoch), job.device)
    set_modes(module, job.plan, job.built.blocks, epoch)
    parts = _Parts(job, module)
    windows = job.windows(0)[:_NUM_STEPS]
    batches = training_batches(samples, job.train_view, windows, 0, job.workers, job.world.part)
    arithmetic = Arithmetic(job.precision, config.optim.clip, make_scaler(job.precision, job.device))
    times = []
    for window in windows:
        start, before = time.perf_counter(), parts.seconds
        micro = islice(batches, len(window))
        train_window(parts.trained, micro, parts.inputs, job.task.objective, optimizer, arithmetic)
        _wait(job.device)
        times.append(time.perf_counter() - start - (parts.seconds - before))
    counted = times[1:] or times
    return sum(counted) / len(counted), parts.per_feature_image


def _evaluate(job: Job, module: nn.Module) -> float:
    samples = job.dataset.splits.get("val", job.dataset.splits["train"])
    parts = _Parts(job, module)
    all_batches = evaluation_batches(
        samples, job.built.preprocessing, job.dataset.native, job.eval_batch_size, job.workers
    )
    batches = list(islice(all_batches, _NUM_EVAL_BATCHES))
    start = time.perf_counter()
    predict_outputs(parts.trained, batches, parts.inputs, job.precision)
    _wait(job.device)
    seconds = time.perf_counter() - start - parts.seconds
    return seconds / sum(len(batch) for batch in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
