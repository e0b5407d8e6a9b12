"""What a run of several tasks is about to do, in words."""

from __future__ import annotations

from warmstart.adapt.apply import live_norms
from warmstart.console import log
from warmstart.data.task_windows import task_places
from warmstart.engine.job import Job, Lane
from warmstart.engine.several.lanes import formula
from warmstart.errors import listing


def _announce_lane(lane: Lane) -> None:
    """Its data, and what became of its head."""
    facts = lane.dataset.facts
    sizes = ", ".join(f"{split} {len(samples)}" for split, samples in lane.dataset.splits.items())
    what = "task" if lane.trained else "task that is measured and not trained"
    log.info(
        "%s %s: %s: %s, %d classes (%s); %s; head %s (%s)",
        what,
        lane.name,
        lane.settings.path,
        lane.task.name,
        len(facts.classes),
        listing(facts.classes, 8),
        sizes,
        lane.built.head_change.kind,
        lane.built.head_change.reason,
    )
    for note in facts.notes:
        log.info("data of %s: %s", lane.name, note)
    if facts.quarantined:
        log.warning("%d unreadable images of %s are left out", len(facts.quarantined), lane.name)


def announce_lanes(job: Job) -> None:
    """Each task; how often it has its turn, what its loss weighs, and what chooses the best step."""
    for lane in job.lanes:
        _announce_lane(lane)
    trained = job.trained_lanes
    places = task_places(job.config, [len(lane.dataset.splits["train"]) for lane in trained])
    told = ", ".join(f"{num} of {lane.name}" for num, lane in zip(places, trained, strict=True))
    log.info("places of an epoch: %s (--tasks.sampling %s)", told, job.config.tasks.sampling)
    weights = ", ".join(
        f"{lane.name} {'learned' if lane.weight is None else format(lane.weight, 'g')}" for lane in trained
    )
    log.info(
        "a step costs the sum over tasks of weight x share of its images x mean loss; weights: %s", weights
    )
    if job.config.retain.l2sp:
        log.info(
            "held to the start weights by l2sp %g: shared blocks, and heads that were kept",
            job.config.retain.l2sp,
        )
    log.info("the best step is chosen by %s", formula(job))
    live = live_norms(job.plan, job.built.blocks, job.plan.last_stage)
    if live and len(trained) > 1:
        log.warning(
            "BatchNorm layers learn (%s): each batch is normalised by itself, and the running statistics, which "
            "evaluation uses, are a mixture of all tasks that is right for none. --freeze-bn keeps those of the start "
            "weights; models with LayerNorm or GroupNorm do not have this",
            listing(live, 3),
        )
    if "val" not in trained[0].dataset.splits:
        log.warning("there are no validation images: the last checkpoint is kept, and nothing is selected")
