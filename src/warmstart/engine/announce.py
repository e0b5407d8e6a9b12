"""What a run is about to do, in words and in plan.json, before it does anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from warmstart.adapt.apply import live_norms
from warmstart.adapt.lora import described
from warmstart.adapt.plan import Plan, Row
from warmstart.console import log, table
from warmstart.engine.job import Job
from warmstart.engine.lessons.lessons import announce_teachers
from warmstart.engine.opening.mining import announce_mined
from warmstart.engine.several.announce_tasks import announce_lanes
from warmstart.errors import listing
from warmstart.run import layout, writer
from warmstart.tasks.binary import FEW
from warmstart.tasks.classification import Classification
from warmstart.tasks.label_metrics import FEWEST_POSITIVES


def announce(job: Job, resolved: dict[str, Any]) -> None:
    """Log the data, the model, the head, the augmentation, the plan, and whatever deserves a warning."""
    (announce_lanes if job.lanes else _announce_data)(job)
    _announce_sources(job)
    _announce_model(job)
    announce_teachers(job, resolved["features"])
    announce_mined(resolved["mined"], job.config.data.mine_prob)
    _announce_augmentation(job, resolved["augment"]["origin"])
    log.info("\n%s", plan_table(job.plan))
    if job.plan.last_stage > 0:
        log.info("\n%s", stage_table(job))
    for remark in job.plan.remarks:
        log.info("%s", remark)
    for note in (*job.plan.notes, *_unreached(job), *_few_to_decide(job)):
        log.warning(note)
    _announce_features(job, resolved["features"])
    _announce_workers(resolved["workers"])
    _announce_steps(job)


def _announce_data(job: Job) -> None:
    facts = job.dataset.facts
    sizes = ", ".join(f"{split} {len(samples)}" for split, samples in job.dataset.splits.items())
    log.info(
        "data: %s: %d classes (%s); %s",
        job.config.data.path,
        len(facts.classes),
        listing(facts.classes, 8),
        sizes,
    )
    for note in facts.notes:
        log.info("data: %s", note)
    if facts.quarantined:
        log.warning(
            "%d unreadable images are left out; they are listed in %s",
            len(facts.quarantined),
            layout.QUARANTINE,
        )
    if "val" not in job.dataset.splits:
        log.warning("there are no validation images: the last checkpoint is kept, and nothing is selected")


def _announce_sources(job: Job) -> None:
    """What is mixed in, by epochs of equal places, and what is measured beside val."""
    mixture, retained = job.dataset.mixture, job.retained
    if mixture is not None:
        names, before = ("--data", *(part.name for part in mixture.parts)), None
        for epoch in range(job.config.train.epochs):
            numbers = mixture.numbers(epoch)
            if numbers != before:
                places = ", ".join(f"{num} of {name}" for name, num in zip(names, numbers, strict=True))
                log.info("places of an epoch, from epoch %d: %s", epoch, places)
            before = numbers
        for part in mixture.parts:
            log.info("mixed in: %s: %d training images", part.name, len(part.samples))
    if retained is not None:
        log.info(
            "not to be forgotten: %s: %d %s images", retained.path, len(retained.samples), retained.split
        )
        _announce_remedies(job, retained.path)


def _announce_remedies(job: Job, path: str) -> None:
    """What holds the model to its start, and what of that start is known."""
    settings, head = job.config.retain, job.built.head_change
    weights = {name: getattr(settings, name) for name in ("l2sp", "ewc", "lwf") if getattr(settings, name)}
    if weights:
        told = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        log.info("held to the start model by %s; its weights are kept in %s", told, layout.START)
    if head.kind == "new":
        log.warning("the head is new: what the start model knew of %s cannot be measured", path)
    elif head.kind == "mixed":
        log.warning("outputs that are new know nothing of %s at the start: %s", path, listing(head.new, 4))


def _announce_model(job: Job) -> None:
    built = job.built
    height, width = built.preprocessing.image_size
    log.info(
        "model: %s from %s; input %dx%d, mean %s, std %s%s",
        built.name,
        built.source["path"] or built.source["kind"],
        height,
        width,
        listing(built.preprocessing.mean),
        listing(built.preprocessing.std),
        f"; licence of the weights: {built.licence}" if built.licence else "",
    )
    for note in built.notes:
        log.info("weights: %s", note)
    log.info("head: %s (%s)", built.head_change.kind, built.head_change.reason)
    if built.lora is not None:
        log.info("LoRA: %s", described(built.lora))
    if built.margin is not None:
        told = ", ".join(f"{name} {value}" for name, value in asdict(built.margin).items())
        ramp = job.config.task.margin_ramp
        log.info("head: %s%s", told, f", growing from 0 over {ramp}" if ramp is not None else "")
    if built.head_change.by_order and any(name != str(number) for number, name in enumerate(built.classes)):
        pairs = listing((f"output {number} as {name!r}" for number, name in enumerate(built.classes)), 6)
        log.warning(
            "the weights name no classes; taken by order: %s. Use --weights none if that is wrong", pairs
        )


def _announce_augmentation(job: Job, origin: str) -> None:
    augment, num_channels = job.train_view.augment, job.built.preprocessing.num_channels
    ranges = augment.in_force if augment is not None else {}
    described = ", ".join(f"{name} {value:.4g}" for name, value in ranges.items()) or "none"
    log.info("augmentation: %s (%s)", described, origin)
    unread = [f"--{name}" for name in ("saturation", "hue") if getattr(job.config.data, name)]
    if unread and num_channels != 3:
        log.warning("%s: no effect on images of %d channels, only on RGB", " ".join(unread), num_channels)


def _announce_features(job: Job, chosen: dict[str, Any]) -> None:
    """Nothing of a stage that trains the first block: there is no choice then."""
    reasons = [chosen["reason"], *(each["reason"] for each in chosen["later"])]
    for stage, (kept, reason) in enumerate(zip(job.kept, reasons, strict=True)):
        where = f"stage {stage + 1}: " if len(reasons) > 1 else ""
        if kept.cut is not None:
            views = f"{kept.views} augmented views of each image" if kept.views > 1 else "each image"
            log.info(
                "%sfrozen blocks are computed once for %s, and their features kept: %s", where, views, reason
            )
        elif not job.plan.rows[0].trains_in(stage):
            log.info("%sfrozen blocks are computed in every epoch: %s", where, reason)


def _announce_workers(chosen: dict[str, Any]) -> None:
    if chosen["images_per_second"]:
        speeds = ", ".join(f"{number}: {speed:.0f}" for number, speed in chosen["images_per_second"].items())
        log.info("decoding threads: %d, measured (images/s by number: %s)", chosen["value"], speeds)


def _announce_steps(job: Job) -> None:
    built, pace = job.built, job.pace
    effective = job.batch_size * job.config.optim.accumulate
    log.info(
        "%d steps of %d images (%d x %d), %d steps per epoch; scheduler %s with %d warmup steps; on %s in %s",
        pace.total_steps,
        effective,
        job.batch_size,
        job.config.optim.accumulate,
        pace.steps_per_epoch,
        job.schedule.kind,
        job.schedule.warmup_steps,
        job.device,
        job.precision or "float32",
    )
    if job.recomputed:
        log.info("activations are computed again in the backward pass: in %s", listing(job.recomputed, 4))
    if job.config.train.compile:
        log.info(
            "training steps are compiled: the first one of each stage takes longer; evaluation is not compiled"
        )
    live = live_norms(job.plan, built.blocks, job.plan.last_stage)
    if job.world.size > 1:
        log.info("%d processes: each takes its part of every batch of %d", job.world.size, job.batch_size)
    if live and job.config.optim.accumulate * job.world.size > 1:
        what = "micro-batch" if job.world.size == 1 else "process's part of a batch"
        log.info(
            "BatchNorm uses the statistics of each %s, not of the whole window: %s", what, listing(live, 4)
        )


def _unreached(job: Job) -> list[str]:
    """Stages that begin after the run's last step, which is known only now."""
    total, per_epoch = job.pace.total_steps, job.pace.steps_per_epoch
    steps = [stage.trigger.step(per_epoch) for stage in job.plan.stages]
    return [
        f"--unfreeze {stage.trigger} has no effect: the run ends at step {total}, "
        f"before {listing(job.plan.new_blocks(number))}"
        for number, (stage, step) in enumerate(zip(job.plan.stages, steps, strict=True))
        if step is not None and step >= total
    ]


def _few_to_decide(job: Job) -> list[str]:
    """What a threshold chosen on few val images is worth."""
    task = job.task
    if not isinstance(task, Classification) or task.rule is None or task.rule.kind == "fixed":
        return []
    counts = job.dataset.facts.counts["val"]
    name, num = min(counts.items(), key=lambda pair: pair[1])
    if num < FEWEST_POSITIVES:
        return [f"--threshold {task.rule}: val has only {num} images of {name!r}: the threshold stays 0.5"]
    if num < FEW:
        return [
            f"--threshold {task.rule}: val has only {num} images of {name!r}: the threshold rests on single images, "
            "and what val says at it is too kind"
        ]
    return []


def plan_table(plan: Plan) -> str:
    """A row per block; of its rates, one for each stage where they differ."""
    rows = [
        (
            row.name,
            row.mode,
            _rates(plan, row),
            f"{row.weight_decay:g}",
            row.norms,
            str(plan.stages[row.from_stage].trigger) if row.trainable else "-",
            f"{row.num_parameters:,}",
            f"{row.num_trainable:,}" if row.trainable else "-",
        )
        for row in plan.rows
    ]
    trained, total = (
        sum(getattr(row, name) for row in plan.rows) for name in ("num_trainable", "num_parameters")
    )
    title = f"plan: {trained:,} of {total:,} parameters train ({trained / total:.2%})"
    return table(title, ("block", "mode", "lr", "decay", "norms", "from", "parameters", "trained"), rows)


def stage_table(job: Job) -> str:
    """A row per stage of --unfreeze: what begins it, what it adds, at which base rate."""
    plan, warmup = job.plan, job.schedule.stage_warmup_steps
    rows = []
    for number, stage in enumerate(plan.stages):
        step = stage.trigger.step(job.pace.steps_per_epoch)
        rows.append(
            (
                str(number + 1),
                str(stage.trigger),
                "?" if step is None else step,
                f"{job.config.optim.lr * stage.factor:.2e}",
                warmup if number else job.schedule.warmup_steps,
                listing(plan.new_blocks(number), 6),
            )
        )
    return table("stages", ("stage", "begins at", "step", "base lr", "warmup steps", "adds"), rows)


def _rates(plan: Plan, row: Row) -> str:
    rates = [plan.rate(row, stage) for stage in range(len(plan.stages))]
    if len(set(filter(None, rates))) <= 1:
        return f"{rates[-1]:.2e}" if row.trainable else "-"
    return ", ".join(f"{rate:.2e}" if rate else "-" for rate in rates)


def plan_record(job: Job) -> dict[str, Any]:
    """The content of plan.json: a row per block from stem to head, with every parameter named."""
    record = job.plan.to_json(job.pace.steps_per_epoch)
    for number, stage in enumerate(record["stages"]):
        cut = job.kept_in(number).cut
        stage["features"] = None if cut is None else cut.name
    return record | {"total_steps": job.pace.total_steps}


def write_tables(job: Job) -> None:
    """quarantine.csv: the files that could not be read, and why; splits.csv: who is where, for a second round.

    Each only where there is something to write.
    """
    _write_table(job.run / layout.QUARANTINE, ("id", "reason"), job.dataset.facts.quarantined)
    _write_table(job.run / layout.SPLITS, ("id", "split"), job.dataset.divided.items())
    for number, source in enumerate(job.sources):
        path = job.run / layout.source_splits_name(number)
        _write_table(path, ("id", "split"), source.dataset.divided.items())


def _write_table(path: Path, header: tuple[str, str], content: Collection[tuple[str, str]]) -> None:
    if not content:
        return
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(header)
    rows.writerows(content)
    writer.write_text(path, text.getvalue())
