"""What a run writes while it trains: metric rows, TensorBoard scalars, the text of the progress bar.

Losses are summed on the device and read only when a row or a checkpoint needs them.
"""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

import torch

from warmstart.engine.job import Job
from warmstart.engine.lessons.lessons import lesson_names
from warmstart.engine.lessons.penalty import Penalty
from warmstart.engine.several.lanes import learned_weights
from warmstart.engine.state import NotFinite, TrainState
from warmstart.engine.step import WindowResult
from warmstart.records import RETAIN
from warmstart.run import layout, writer
from warmstart.run.tensorboard import ScalarWriter
from warmstart.tasks import binary

_OF_CLASSES = ("fisher_ratio", "fisher_document", "most_confident_mistake", "likely_mislabelled")
_VALIDATION_SCALARS = ("combined", "loss", "accuracy", "map", "miou", *binary.METRICS, *_OF_CLASSES)

# The scale has been halved as often by then: the gradients are not too large, they are broken.
_MOST_SKIPPED = 20


class MetricWriter:
    """Sums since the last row and since the epoch began: loss, weight, epoch's loss, epoch's weight, watched, lessons.

    What is watched is as finite as everything that went into the steps since the last row, and the number of steps
    for which it was tells the first one that failed: so steps are watched without waiting for any of them.
    """

    def __init__(self, job: Job, state: TrainState, penalty: Penalty | None = None) -> None:
        self._job, self._penalty = job, penalty
        self._lessons = lesson_names(job.config)
        taught = (
            state.taught_sums if len(state.taught_sums) == len(self._lessons) else [0.0] * len(self._lessons)
        )
        dtype = torch.float32 if job.device.type == "mps" else torch.float64
        sums = [state.loss_sum, state.weight_sum, state.epoch_loss_sum, state.epoch_weight_sum]
        self._sums = torch.tensor([*sums, 0.0, *taught], dtype=dtype, device=job.device)
        self._num_finite = torch.zeros(2, dtype=torch.int64, device=job.device)  # steps, by loss and by both
        # fp16: steps that were left out in a row, and the step of this row at which there were too many (0: none).
        self._skipped = torch.tensor([state.num_skipped, 0], dtype=torch.int64, device=job.device)
        self._num_steps = 0  # since the last row
        has_events = job.config.output.tensorboard and job.world.is_main
        self._events = ScalarWriter(job.run / layout.TENSORBOARD) if has_events else None
        self._last_step, self._last_time = state.step, time.perf_counter()
        self._first_step_of_row = state.step
        self._rates: list[float] = []
        self._grad_norm = torch.zeros(())
        self.text = ""

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()

    def add(self, result: WindowResult, rates: list[float]) -> None:
        self._rates, self._grad_norm = rates, result.grad_norm
        loss, weight, norm, taught = result
        watched = loss + norm
        # fp16's scaler leaves out a step whose gradients are too large by itself.
        if self._job.precision == torch.float16:
            watched, is_skipped = loss, ~norm.isfinite()
            self._num_steps += 1
            num = (self._skipped[0] + 1) * is_skipped
            self._skipped = torch.stack(
                [num, torch.where(num == _MOST_SKIPPED, self._num_steps, self._skipped[1])]
            )
        own = torch.stack([loss, weight, loss, weight, watched])
        self._sums[:5] += own.to(self._sums.dtype)
        if len(taught):
            self._sums[5:] += taught.to(self._sums.dtype)
        self._num_finite += self._sums[:5:4].isfinite()

    def collect(self, state: TrainState) -> None:
        """Read the sums into the state.

        Raises:
            NotFinite: a loss or a gradient was NaN or infinite since the last row; in fp16 many gradients in a row.
        """
        *sums, watched = self._sums[:5].tolist()
        state.loss_sum, state.weight_sum, state.epoch_loss_sum, state.epoch_weight_sum = sums
        state.taught_sums = self._sums[5:].tolist()
        if not math.isfinite(watched):
            by_loss, num = self._num_finite.tolist()
            what = "the gradient is" if by_loss > num else "the training loss is"
            raise NotFinite(self._first_step_of_row + num + 1, what, self._job.cure)
        if self._job.precision != torch.float16:
            return
        state.num_skipped, given_up_at = self._skipped.tolist()
        if given_up_at:
            what = f"fp16's gradients of {_MOST_SKIPPED} steps in a row are"
            step = self._first_step_of_row + given_up_at
            raise NotFinite(step, what, f"--precision bf16 or fp32; or {self._job.cure}")

    def train_row(self, state: TrainState) -> None:
        """One row of metrics.jsonl: the mean loss per item since the row before."""
        self.collect(state)
        rates, now = self._rates, time.perf_counter()
        loss = _mean(state.loss_sum, state.weight_sum)
        num_images = self._images(state.step) - self._images(self._last_step)
        speed = num_images / max(1e-9, now - self._last_time)
        row = {
            "kind": "train",
            "step": state.step,
            "epoch": round(state.step / self._job.pace.steps_per_epoch, 4),
            "loss": loss,
            **self._remedies(state),
            "lr": max(rates),
            "lrs": rates,
            "grad_norm": float(self._grad_norm),
            "images_per_s": round(speed, 1),
            "seconds": round(state.seconds, 3),
        }
        writer.append_row(self._job.run / layout.METRICS, row)
        self._scalar("loss", loss, state.step)
        if len(set(rates)) == 1:
            self._scalar("learning_rate", rates[0], state.step)
        else:
            for number, rate in enumerate(rates):
                self._scalar(f"learning_rate/group_{number}", rate, state.step)
        self.text = f"loss {loss:.4f}  lr {max(rates):.2e}  {speed:.0f} images/s"
        self._sums[:2] = 0
        self._sums[4:] = 0
        self._num_finite.zero_()
        self._skipped[1], self._num_steps = 0, 0
        state.loss_sum = state.weight_sum = 0.0
        state.taught_sums = [0.0] * len(self._lessons)
        self._last_step, self._last_time, self._first_step_of_row = state.step, now, state.step

    def _remedies(self, state: TrainState) -> dict[str, float]:
        """What is added to the loss, each with its weight: means of lessons, and the penalties as they are now."""
        found = {} if self._penalty is None else self._penalty.values()
        for name, taught in zip(self._lessons, state.taught_sums, strict=True):
            found[name] = _mean(taught, state.weight_sum)
        found |= learned_weights(self._job)
        for name, value in found.items():
            self._scalar(name, value, state.step)
        return found

    def epoch_row(self, state: TrainState) -> None:
        """The mean training loss of a whole epoch, as it was while the weights moved."""
        self.collect(state)
        mean = _mean(state.epoch_loss_sum, state.epoch_weight_sum)
        row = {"kind": "epoch", "step": state.step, "epoch": state.epoch, "train_loss_avg": mean}
        writer.append_row(self._job.run / layout.METRICS, row)
        self._scalar("train_loss_avg", mean, state.step)
        self._sums[2:4] = 0
        state.epoch_loss_sum = state.epoch_weight_sum = 0.0

    def validation(self, state: TrainState, measured: dict[str, dict[str, Any]]) -> None:
        of_tasks = [(name, f"{name}/") for name in measured if name.endswith((".val", f".{RETAIN}"))]
        for split, prefix in (("val", ""), (RETAIN, f"{RETAIN}/"), *of_tasks):
            metrics = measured.get(split, {})
            for name in _VALIDATION_SCALARS:
                if name in metrics:
                    tag = f"{prefix}{name}" if prefix else {"loss": "val_loss"}.get(name, name)
                    self._scalar(tag, metrics[name], state.step)
            for name, value in metrics.get("separation", {}).items():
                self._scalar(f"{prefix}separation/{name}", value, state.step)
        train, val = measured.get("train", {}), measured.get("val", {})
        for name in dict.fromkeys(("loss", self._job.select_by)):
            if name in train and name in val:
                self._scalar(f"gap/{name}", train[name] - val[name], state.step)
        self._last_time = time.perf_counter()  # time spent on validation is not training time
        self._last_step = state.step

    def _images(self, step: int) -> int:
        """Training images consumed by the end of a step, from the sizes of full windows."""
        epochs, steps = divmod(step, self._job.pace.steps_per_epoch)
        full = self._job.batch_size * self._job.config.optim.accumulate
        total = self._job.images_per_epoch
        return epochs * total + min(total, steps * full)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._events is not None:
            self._events.add(tag, value, step)


def _mean(loss_sum: float, weight_sum: float) -> float:
    """NaN where nothing but classes of weight 0 was seen."""
    return loss_sum / weight_sum if weight_sum else math.nan
