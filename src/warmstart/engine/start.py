"""The start model as what a run holds on to: its weights, and how much each of them matters for what it knew.

Recorded in the run when it begins (start.safetensors), so that a resumed run, and a run that continues it, hold on to
the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from warmstart.adapt.plan import Plan
from warmstart.config.schema import Config
from warmstart.console import log, progress
from warmstart.data import counters
from warmstart.data.batches import evaluation_batches
from warmstart.data.mixture import balanced_sample
from warmstart.engine.feature_plan import FeatureChoice, choices_from_json, choices_to_json, kept_features
from warmstart.engine.job import Job
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.models.build import BuiltModel
from warmstart.run import layout, writer
from warmstart.run.reader import Run

_WEIGHTS, _FISHER = "weights.", "fisher."


@dataclass(frozen=True, eq=False)
class Start:
    """`weights` is a whole state_dict, `fisher` by parameter name (empty without EWC); on the CPU."""

    weights: dict[str, torch.Tensor]
    fisher: dict[str, torch.Tensor]

    def to_bytes(self) -> bytes:
        kept = {_WEIGHTS + name: tensor.contiguous() for name, tensor in self.weights.items()}
        return save(kept | {_FISHER + name: tensor.contiguous() for name, tensor in self.fisher.items()})

    @classmethod
    def from_bytes(cls, content: bytes) -> Start:
        found = load(content)
        parts = [
            {name.removeprefix(mark): tensor for name, tensor in found.items() if name.startswith(mark)}
            for mark in (_WEIGHTS, _FISHER)
        ]
        return cls(*parts)

    def model(self, built: BuiltModel) -> nn.Module:
        """A copy of the model with the weights of the start, in evaluation mode, without gradients."""
        module = copy.deepcopy(built.module)
        module.load_state_dict(self.weights)
        return module.eval().requires_grad_(False)

    def has_prefix_of(self, job: Job, stage: int) -> bool:
        """Whether what is frozen in a stage is still what it was at the start: then kept features are the start's."""
        frozen = [block for block in job.built.blocks if not job.plan.row(block.name).trains_in(stage)]
        now = job.built.module.state_dict()
        names = [name for block in frozen for name in (*block.parameters, *block.buffers) if name in now]
        return all(torch.equal(now[name].cpu(), self.weights[name]) for name in names)


def needs_start(config: Config) -> bool:
    retain = config.retain
    return bool(retain.l2sp or retain.ewc or retain.lwf)


def held_parameters(plan: Plan, built: BuiltModel) -> list[str]:
    """Parameters that train at some time and come from the start weights: a new head has nothing to go back to."""
    head = built.blocks[-1].name
    is_new = built.head_change.kind != "kept"
    return [name for row in plan.rows if not (is_new and row.name == head) for name in row.trainable]


def known_outputs(built: BuiltModel) -> list[int]:
    """The outputs that the start weights brought along."""
    return [number for number, name in enumerate(built.classes) if name in built.head_change.kept]


def start_of(run: Run) -> Start | None:
    """What a run recorded; None where nothing there holds on to it. Raises UserError for a damaged file."""
    path = run.path / layout.START
    if not path.exists():
        return None
    try:
        return Start.from_bytes(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged: {error}", "the weights that the run started from", "restore the file"
        ) from None


def parents_start(parent: Run | None, job: Job) -> Start | None:
    """What the parent held on to, where its child does so too: more epochs must be the longer run."""
    return start_of(parent) if parent is not None and needs_start(job.config) else None


def start_kept(parent: Run | None, job: Job) -> Iterator[tuple[str, str, str]]:
    """(what, kept or new, how) where a run that continues `parent` holds on to a start."""
    if needs_start(job.config):
        is_kept = parents_start(parent, job) is not None
        how = "the parent's start, which penalties and LwF hold on to" if is_kept else "the weights here"
        yield "start weights", "kept" if is_kept else "new", how


def hand_on_start(parent: Run | None, job: Job) -> None:
    """Write the parent's start into its child, before that records its own."""
    held = parents_start(parent, job)
    if held is not None:
        writer.write_whole(job.run / layout.START, held.to_bytes())


def usable_features(job: Job, parent: Run | None, recorded: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
    """The job and its choice of features without those of first blocks that a parent moved away from the start."""
    held = parents_start(parent, job)
    if held is None or not job.config.retain.lwf:
        return job, recorded
    moved = FeatureChoice(None, 1, "LwF: the start model's first blocks were others")
    chosen = [
        choice if choice.cut is None or held.has_prefix_of(job, stage) else moved
        for stage, choice in enumerate(choices_from_json(recorded))
    ]
    return replace(job, kept=kept_features(chosen)), choices_to_json(chosen)


def open_start(job: Job, is_fresh: bool) -> Start | None:
    """The start that the run recorded; a fresh run records it now. None where nothing holds on to it.

    The first process decides, and the others take its numbers: computed twice, they could differ by rounding.

    Raises:
        UserError: the file of a resumed run is gone or damaged.
    """
    if not needs_start(job.config):
        return None
    return Start.from_bytes(job.world.on_main(lambda: _recorded(job, is_fresh)))


def _recorded(job: Job, is_fresh: bool) -> bytes:
    path = job.run / layout.START
    start = start_of(Run(job.run))
    if start is None and is_fresh:
        start = Start(
            {name: t.detach().cpu().clone() for name, t in job.built.module.state_dict().items()}, {}
        )
    if start is None:
        raise UserError(
            f"{path} is gone", "the weights that the run started from", "restore the file, or start anew"
        )
    if job.config.retain.ewc and not start.fisher:
        start = Start(start.weights, fisher_information(job, start))
    content = start.to_bytes()
    if not path.exists() or path.read_bytes() != content:
        writer.write_whole(path, content)
    return content


def fisher_information(job: Job, start: Start) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information of the start model, float32, by parameter name.

    The mean over images of the squared gradient of log p(y | x), with y drawn from the model's own p(y | x) and not
    the label (Kirkpatrick et al. 2017; Kunstner et al. 2019 say why), one image at a time. Images are a class-balanced
    sample of what is retained; which, and what is drawn, follow from the seed.
    """
    kept, seed = job.retained, job.config.train.seed
    assert kept is not None, "EWC needs --retain"
    samples = kept.training.subset(balanced_sample(kept.training.targets, job.config.retain.ewc_images, seed))
    module, names = start.model(job.built), held_parameters(job.plan, job.built)
    parameters = dict(module.named_parameters())
    asked = [parameters[name].requires_grad_(True) for name in names]
    sums = [torch.zeros_like(parameter) for parameter in asked]
    inputs = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
    columns = known_outputs(job.built)
    log.info("EWC: Fisher information of %d images of %s", len(samples), kept.path)
    with progress("Fisher information", len(samples)) as bar:
        batches = evaluation_batches(samples, job.built.preprocessing, kept.native, 1, job.workers)
        for done, batch in enumerate(batches, 1):
            logits = module(inputs(batch.images))[0, columns]
            uniform = counters.generator(seed, 0, counters.FISHER, int(batch.keys[0])).random(len(columns))
            loglikelihood = _drawn_loglikelihood(logits, uniform.tolist(), job.built.multi_label)
            found = torch.autograd.grad(loglikelihood, asked, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += gradient**2
            bar.update(done)
    return {name: (total / len(samples)).cpu() for name, total in zip(names, sums, strict=True)}


def _drawn_loglikelihood(logits: torch.Tensor, uniform: list[float], multi_label: bool) -> torch.Tensor:
    """log p of an answer drawn from the model: one class, or yes or no for each label. Logits are (K,)."""
    if multi_label:
        drawn = torch.tensor(uniform, device=logits.device) < torch.sigmoid(logits.detach())
        return -nn.functional.binary_cross_entropy_with_logits(
            logits, drawn.to(logits.dtype), reduction="sum"
        )
    logs = torch.log_softmax(logits, 0)
    below = torch.cumsum(logs.detach().exp(), 0) < uniform[0]
    return logs[min(int(below.sum()), len(logs) - 1)]
