"""Learning from episodes in the one loop: the plan, the part that trains, and the fixed episodes that measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from warmstart.adapt.apply import live_norms
from warmstart.adapt.plan import Plan, make_plan
from warmstart.config.schema import AdaptConfig, Config
from warmstart.data.episodes import fixed_episodes
from warmstart.data.samples import Samples
from warmstart.engine.job import Job
from warmstart.errors import UserError, listing
from warmstart.inference.episodes import EpisodePart
from warmstart.models.build import BuiltModel

_LEARNED = "{} moves in the inner steps and is learned by all episodes"


def plan_episodes(
    config: Config,
    built: BuiltModel,
    sizes: Mapping[str, tuple[int, ...]],
    adapt: AdaptConfig,
    own_statistics: bool,
) -> Plan:
    """The plan of a training on episodes, with its remarks.

    ProtoNet asks nothing of the head, which so stays as it is. BatchNorm layers with statistics from a training hold
    them: those of an episode are of W classes and a few images, and would answer for each other. Without such
    statistics (random weights) there is nothing to hold, and with `own_statistics` an episode's are taken, in training
    and measured.
    """
    names, meta = [block.name for block in built.blocks], config.meta
    if meta.method == "protonet":
        adapt = adapt.model_copy(update={"freeze": (*adapt.freeze, names[-1])})
    plan = make_plan(built.blocks, dict(sizes), adapt, config.optim)
    if meta.method == "anil" and not plan.rows[-1].trainable:
        raise UserError(
            "--meta anil moves the head alone in an episode, and the head is frozen",
            "a head that trains",
            f"leave {names[-1]} out of --freeze",
        )
    live = [row.name for row in plan.rows if row.norms == "train"]
    if live and not own_statistics:
        rows = tuple(replace(row, norms="held") if row.norms == "train" else row for row in plan.rows)
        plan = replace(plan, rows=rows)
    remarks = [
        {
            "protonet": f"{names[-1]} has no part in it: prototypes take its place",
            "anil": _LEARNED.format(f"{names[-1]} alone"),
        }.get(meta.method, _LEARNED.format("all that trains"))
    ]
    if live:
        remarks.append(
            "BatchNorm: random weights know no statistics, so those of the images that go through together are taken, "
            f"query images among themselves too (transductive): in {listing(live, 4)}"
            if own_statistics
            else "BatchNorm: the statistics of the weights are held, in training and measured (random weights take an "
            f"episode's own): in {listing(live, 4)}"
        )
    return replace(plan, remarks=tuple(remarks))


def episodes_record(job: Job) -> dict[str, Any] | None:
    """What resolved.json holds of the episodes; None where the run has none."""
    if not job.config.meta.is_on:
        return None
    counts = job.dataset.facts.counts
    return {
        "classes": {split: [name for name, num in row.items() if num] for split, row in counts.items()},
        "own_statistics": any(row.norms == "train" for row in job.plan.rows),
    }


def episodic(job: Job, module: nn.Module, part: nn.Module) -> nn.Module:
    """`part` (the whole `module`, or what is behind a cut) to be called with episodes, where the run has such."""
    if not job.config.meta.is_on:
        return part
    live = live_norms(job.plan, job.built.blocks, job.plan.last_stage)
    parameters = dict(module.named_parameters())
    return EpisodePart(
        part,
        module.get_submodule(job.built.head),
        job.config.meta,
        [parameters[name] for name in _adapted(job)],
        [module.get_submodule(path) for path in live],
    )


def _adapted(job: Job) -> Sequence[str]:
    """The parameters that the inner steps move."""
    rows = {"protonet": (), "anil": job.plan.rows[-1:]}.get(job.config.meta.method, job.plan.rows)
    return [name for row in rows for name in row.trainable]


def episodes_of(job: Job, samples: Samples, split: str) -> list[np.ndarray]:
    """The fixed episodes of a split: of train as many as half of val's, as for its images elsewhere."""
    meta = job.config.meta
    num = {"test": meta.test_episodes, "val": meta.val_episodes}.get(split, (meta.val_episodes + 1) // 2)
    return fixed_episodes(samples.targets, job.config, num)
