"""Which modules compute once more in the backward pass: chosen and proved before the run, recorded for resume."""

from __future__ import annotations

from functools import partial

from torch import nn

from warmstart.adapt.apply import set_modes
from warmstart.engine.feature_plan import some_images
from warmstart.engine.job import Job
from warmstart.inference.recompute import Recomputed, find_recomputed

_NUM_IMAGES = 2  # norm layers learn nothing from one


def choose_recomputed(job: Job) -> tuple[str, ...]:
    """Paths of modules in the blocks that train at any time; empty where --gradient-checkpointing is not given.

    Raises:
        UserError: the model has none, or cannot be computed in this way.
    """
    if not job.config.train.gradient_checkpointing:
        return ()
    built, plan = job.built, job.plan
    subtrees = [path for block in built.blocks if plan.row(block.name).trainable for path in block.modules]
    modes = partial(set_modes, built.module, plan, built.blocks, plan.last_stage)
    return find_recomputed(built.module, subtrees, some_images(job, _NUM_IMAGES), modes, built.name)


def recomputed(job: Job, stage: int, module: nn.Module, part: nn.Module) -> nn.Module:
    """`part` (the whole `module`, or what is behind a cut) with the chosen modules of the blocks that train."""
    cut = job.kept_in(stage).cut
    blocks = [block for block in job.built.blocks if job.plan.row(block.name).trains_in(stage)]
    roots = tuple(f"{path}." for block in blocks for path in block.modules)
    # Kept features come in through a hook, and the second pass would begin before it.
    paths = [
        path
        for path in job.recomputed
        if f"{path}.".startswith(roots) and (cut is None or not cut.first.startswith(f"{path}."))
    ]
    return Recomputed(part, [module.get_submodule(path) for path in paths]) if paths else part
