"""The start model as what a run holds on to: its weights, and how much each of them matters for what it knew.

Recorded in the run when it begins (start.safetensors), so that a resumed run, and a run that continues it, hold on to
the same numbers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from warmstart.config.schema import Config
from warmstart.console import log, progress
from warmstart.data import counters
from warmstart.data.batches import evaluation_batches
from warmstart.data.mixture import balanced_sample
from warmstart.data.samples import Samples
from warmstart.engine.checkpoint import Saved
from warmstart.engine.feature_plan import choices_from_json, choices_to_json, kept_features
from warmstart.engine.job import Job
from warmstart.engine.several.lanes import new_parameters
from warmstart.errors import UserError, listing
from warmstart.inference.inputs import InputBuffer
from warmstart.models.build import BuiltModel
from warmstart.run import layout, writer
from warmstart.run.reader import Run

_WEIGHTS, _FISHER, _ABOUT = "weights.", "fisher.", "warmstart.start"


@dataclass(frozen=True, eq=False)
class Start:
    """`weights` is a whole state_dict, `fisher` by parameter name (empty without EWC); on the CPU.

    `new` are the parameters that were made anew for the run, and `known` the classes whose outputs were not. A
    checkpoint of the run says neither any more. `fisher_of` says what the Fisher information was computed from.
    """

    weights: dict[str, torch.Tensor]
    fisher: dict[str, torch.Tensor]
    new: tuple[str, ...]
    known: tuple[str, ...]
    fisher_of: dict[str, Any]

    @classmethod
    def of(cls, job: Job, weights: dict[str, torch.Tensor]) -> Start:
        """That of a run that begins with `weights`, in the model as it was built for it."""
        copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return cls(copies, {}, new_parameters(job), tuple(job.built.head_change.kept), {})

    def to_bytes(self) -> bytes:
        kept = {_WEIGHTS + name: tensor.contiguous() for name, tensor in self.weights.items()}
        kept |= {_FISHER + name: tensor.contiguous() for name, tensor in self.fisher.items()}
        about = {"new": self.new, "known": self.known, "fisher_of": self.fisher_of}
        return save(kept, {_ABOUT: json.dumps(about)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Start:
        """Raises SafetensorError for damaged content, KeyError where it is not a start."""
        found = load(content)
        weights, fisher = (
            {name.removeprefix(mark): tensor for name, tensor in found.items() if name.startswith(mark)}
            for mark in (_WEIGHTS, _FISHER)
        )
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"][_ABOUT])
        return cls(weights, fisher, tuple(about["new"]), tuple(about["known"]), about["fisher_of"])

    def model(self, built: BuiltModel) -> nn.Module:
        """A copy of the model with the weights of the start, in evaluation mode, without gradients."""
        module = copy.deepcopy(built.module)
        module.load_state_dict(self.weights)
        module.zero_grad(set_to_none=True)  # a copy takes the gradients along
        return module.eval().requires_grad_(False)

    def held_parameters(self, job: Job) -> list[str]:
        """Parameters that train at some time and come from the start: a new head has nothing to go back to."""
        return [name for row in job.plan.rows for name in row.trainable if name not in self.new]

    def known_outputs(self, built: BuiltModel) -> list[int]:
        """The outputs that the start weights brought along."""
        return [number for number, name in enumerate(built.classes) if name in self.known]

    def has_prefix_of(self, job: Job, stage: int, now: dict[str, torch.Tensor]) -> bool:
        """Whether what a stage freezes is in `now` still what it was at the start: its features are the start's."""
        return _have_equal_prefix(job, stage, now, self.weights)

    def has_fisher_of(self, job: Job) -> bool:
        """Whether the Fisher information is of this job's images and of the parameters that it holds."""
        return self.fisher_of == _fisher_source(job) and set(self.fisher) == set(self.held_parameters(job))


def _have_equal_prefix(
    job: Job, stage: int, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> bool:
    frozen = [block for block in job.built.blocks if not job.plan.row(block.name).trains_in(stage)]
    names = [name for block in frozen for name in (*block.parameters, *block.buffers) if name in one]
    return all(torch.equal(one[name].cpu(), other[name].cpu()) for name in names)


def needs_start(config: Config) -> bool:
    retain = config.retain
    return bool(retain.l2sp or retain.ewc or retain.lwf)


def start_of(run: Run) -> Start | None:
    """What a run recorded; None where nothing there holds on to it. Raises UserError for a damaged file."""
    path = run.path / layout.START
    if not path.exists():
        return None
    try:
        return Start.from_bytes(path.read_bytes())
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: {error}", "the weights that the run started from", "restore the file"
        ) from None


def parents_start(parent: Run | None, job: Job) -> Start | None:
    """What the parent held on to, where its child can do so too: more epochs must be the longer run."""
    held = start_of(parent) if parent is not None and needs_start(job.config) else None
    return held if held is not None and _why_unfit(held, job) is None else None


def _why_unfit(held: Start, job: Job) -> str | None:
    """Why a parent's start cannot be a child's; None: it can."""
    now = job.built.module.state_dict()
    names = sorted(now.keys() | held.weights.keys())
    other = [
        name
        for name in names
        if name not in now or name not in held.weights or now[name].shape != held.weights[name].shape
    ]
    if other:
        return f"the parent's start has other shapes: {listing(other, 2)}"
    if job.built.head_change.kind != "kept":
        return "the head is new"
    if (job.config.retain.ewc or job.config.retain.lwf) and not held.known:
        return "the parent's start knew none of these classes"
    return None


def start_kept(parent: Run | None, job: Job) -> Iterator[tuple[str, str, str]]:
    """(what, kept or new, how) where a run that continues `parent` holds on to a start."""
    if not needs_start(job.config):
        return
    held = start_of(parent) if parent is not None else None
    why = None if held is None else _why_unfit(held, job)
    is_kept = held is not None and why is None
    how = "the parent's start, which penalties and LwF hold on to" if is_kept else "the weights here"
    yield "start weights", "kept" if is_kept else "new", how + ("" if why is None else f"; {why}")
    if job.config.retain.ewc:
        has_fisher = held is not None and is_kept and held.has_fisher_of(job)
        how = "of the same images and parameters" if has_fisher else "computed at the start"
        yield "Fisher information", "kept" if has_fisher else "new", how


def hand_on_start(parent: Run | None, job: Job) -> None:
    """Write the parent's start into its child, before that records its own."""
    held = parents_start(parent, job)
    if held is not None:
        writer.write_whole(job.run / layout.START, held.to_bytes())


def usable_features(
    job: Job, parent: Run | None, saved: Saved | None, recorded: dict[str, Any]
) -> tuple[Job, dict[str, Any]]:
    """The job and its choice of features without those of first blocks that others than the training's need too.

    Those are the start model of LwF, which a parent may have moved away from, and the parent's averaged weights, which
    are measured and saved. `saved` is what the training begins from (None: from the model as it was built).
    """
    held = parents_start(parent, job) if job.config.retain.lwf else None
    now = job.built.module.state_dict() if saved is None else saved.weights
    averaged = {} if saved is None or job.config.train.ema is None else saved.averaged
    averaged = {name.removeprefix("module."): tensor for name, tensor in averaged.items()}
    chosen = choices_from_json(recorded)
    for stage, choice in enumerate(chosen):
        if choice.cut is None:
            continue
        if held is not None and not held.has_prefix_of(job, stage, now):
            why = "LwF: the start model's first blocks were others"
            chosen[stage] = replace(choice, cut=None, reason=why)
        elif averaged and not _have_equal_prefix(job, stage, now, averaged):
            why = "--ema: the averaged weights of the parent have other first blocks than those that train"
            chosen[stage] = replace(choice, cut=None, reason=why)
    return replace(job, kept=kept_features(chosen)), choices_to_json(chosen)


def open_start(job: Job, is_fresh: bool, saved: Saved | None = None) -> Start | None:
    """The start that the run recorded; a fresh run records it now. None where nothing holds on to it.

    `saved` is what a fresh run begins from, where that is not the model as it was built: with --ema a file holds the
    averaged weights, and the training goes on from others.
    The first process decides, and the others take its numbers: computed twice, they could differ by rounding.

    Raises:
        UserError: the file of a resumed run is gone or damaged.
    """
    if not needs_start(job.config):
        return None
    return Start.from_bytes(job.world.on_main(lambda: _recorded(job, is_fresh, saved)))


def _recorded(job: Job, is_fresh: bool, saved: Saved | None) -> bytes:
    path = job.run / layout.START
    start = start_of(Run(job.run))
    if start is None and is_fresh:
        start = Start.of(job, job.built.module.state_dict() if saved is None else saved.weights)
    if start is None:
        raise UserError(
            f"{path} is gone", "the weights that the run started from", "restore the file, or start anew"
        )
    # A parent's may be of other images; what a resumed run began with is its own, whatever has changed since.
    if job.config.retain.ewc and (not start.fisher or (is_fresh and not start.has_fisher_of(job))):
        start = replace(start, fisher=fisher_information(job, start), fisher_of=_fisher_source(job))
    content = start.to_bytes()
    if not path.exists() or path.read_bytes() != content:
        writer.write_whole(path, content)
    return content


def _fisher_images(job: Job) -> Samples:
    kept, config = job.retained, job.config
    assert kept is not None, "EWC needs --retain"
    return kept.training.subset(
        balanced_sample(kept.training.targets, config.retain.ewc_images, config.train.seed)
    )


def _fisher_source(job: Job) -> dict[str, Any]:
    """What the Fisher information of a start depends on: the images, what is drawn for them, and how they are seen."""
    images = _fisher_images(job)
    (data,) = [other.dataset for other in job.sources if other.path == job.config.retain.path]
    found = {
        "data": data.facts.fingerprint,
        "images": len(images),
        "ids": hashlib.sha256("\n".join(images.ids).encode()).hexdigest(),
        "seed": job.config.train.seed,
        "preprocessing": asdict(job.built.preprocessing),
    }
    return dict(json.loads(json.dumps(found)))  # as it is read back


def fisher_information(job: Job, start: Start) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information of the start model, float32, by parameter name.

    The mean over images of the squared gradient of log p(y | x), with y drawn from the model's own p(y | x) and not
    the label (Kirkpatrick et al. 2017; Kunstner et al. 2019 say why), one image at a time. Images are a class-balanced
    sample of what is retained; which, and what is drawn, follow from the seed.
    """
    kept, seed = job.retained, job.config.train.seed
    assert kept is not None, "EWC needs --retain"
    samples = _fisher_images(job)
    module, names = start.model(job.built), start.held_parameters(job)
    parameters = dict(module.named_parameters())
    asked = [parameters[name].requires_grad_(True) for name in names]
    sums = [torch.zeros_like(parameter) for parameter in asked]
    inputs = InputBuffer(job.built.preprocessing, job.device, job.built.channels_last)
    columns = start.known_outputs(job.built)
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
