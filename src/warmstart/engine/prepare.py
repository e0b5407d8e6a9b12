"""From a config to a `Job`: every computed value is decided here once, and recorded for resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.adapt.plan import make_plan
from warmstart.config.schema import Config
from warmstart.console import log
from warmstart.data.augment import Augment
from warmstart.data.batches import View
from warmstart.data.dataset import Dataset
from warmstart.data.mixing import Mixing
from warmstart.data.order import training_windows
from warmstart.data.workers import WorkersChoice, candidates, resolve_workers
from warmstart.engine.compiled import check_compiler
from warmstart.engine.distributed import SOLO, World
from warmstart.engine.feature_plan import FeatureChoice, choose_features
from warmstart.engine.job import Bar, Job, Pace
from warmstart.engine.open_inputs import open_inputs
from warmstart.engine.optimizer import check_optimizer
from warmstart.engine.probe import Probe, probe, speeds_of_workers
from warmstart.engine.record import make_record
from warmstart.engine.schedule import make_schedule
from warmstart.errors import UserError, listing
from warmstart.inference.device import resolve_device, resolve_precision
from warmstart.inference.reference import WeightsReference, resolve_weights
from warmstart.models.build import BuiltModel
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.task import Task, make_task, resolve_metric


@dataclass(frozen=True)
class Prepared:
    """A job, and what was computed on the way to it (the content of resolved.json)."""

    job: Job
    resolved: dict[str, Any]


def prepare(
    config: Config,
    origins: dict[str, str],
    run: Path,
    resolved: dict[str, Any] | None = None,
    world: World = SOLO,
    steps_done: Callable[[int], int] = lambda steps_per_epoch: 0,
) -> Prepared:
    """Open the data, build the model, plan, and turn durations into steps; `steps_done` is the first of them.

    `resolved` is what an earlier start of the same run, or its first process, recorded: its values are taken
    instead of being computed again, so that a resumed run is the run that was started.

    Raises:
        UserError: whatever the data, the weights or the plan refuse.
    """
    device, precision = _device(config, world)
    reference = resolve_weights(config.model.weights)
    opened = open_inputs(config, reference, run, resolved, device)
    dataset, built = opened.dataset, opened.built
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    plan = make_plan(built.blocks, sizes, config.adapt, config.optim)
    augment, augment_origin = _augment(config, reference, resolved)
    pace = _pace(config, dataset, steps_done) if resolved is None else Pace(**resolved["pace"])
    task = _task(config, dataset, built)
    job = Job(
        run=run,
        config=config,
        dataset=dataset,
        built=replace(built, multi_label=isinstance(task, MultiLabel)),
        plan=plan,
        schedule=make_schedule(config.optim, pace.total_steps, pace.steps_per_epoch),
        task=task,
        select_by=resolve_metric(config.train.select_by, task),
        pace=pace,
        train_view=View(
            built.preprocessing,
            dataset.native,
            augment,
            _mixing(config, augment, dataset),
            dataset.mask_rules,
        ),
        workers=resolve_workers(
            config.data.workers, dataset.splits["train"], device.type != "cpu", world.local_size
        ),
        eval_batch_size=config.data.eval_batch_size or 2 * config.data.batch_size,
        world=world,
        device=device,
        precision=precision,
        bar=None if resolved is None else Bar.recorded(resolved),
    )
    _check_settings(job)
    if resolved is not None:
        return _decided(job, resolved)
    record = {"settings": asdict(augment), "origin": augment_origin}
    return _decide(
        job, lambda job, measured: make_record(job, reference, origins, record, measured), opened.split
    )


def _device(config: Config, world: World) -> tuple[torch.device, torch.dtype | None]:
    """The device, on which the optimizer and the compiler work, and the precision of the forward pass there."""
    device = world.own(resolve_device(config.train.device))
    check_optimizer(config.optim, device)
    if config.train.compile:
        check_compiler(device)
    precision, warning = resolve_precision(config.train.precision, device)
    if warning:
        log.warning(warning)
    return device, precision


def _decided(job: Job, resolved: dict[str, Any]) -> Prepared:
    """What `_decide` recorded when the run was started."""
    chosen = FeatureChoice.from_json(resolved["features"])
    workers = job.workers if job.config.data.workers != "auto" else resolved["workers"]["value"]
    return Prepared(replace(job, cut=chosen.cut, views=chosen.views, workers=workers), resolved)


def _task(config: Config, dataset: Dataset, built: BuiltModel) -> Task:
    """Raises UserError where the model says another kind of thing than the data."""
    has_masks = dataset.ignore is not None
    if built.segments != has_masks:
        found = "a class of every pixel" if built.segments else "a class of every image"
        raise UserError(
            f"{built.name} says {found}, and the data have {'masks' if has_masks else 'no masks'}",
            "a segmenting model for masks, a classifier for labels",
            "--model builtin:microsegformer, smp:Unet/resnet18 or torchvision:deeplabv3_resnet50 segment"
            if has_masks
            else "name folders of images and masks, or another --model",
        )
    facts = dataset.facts
    counts = facts.counts["train"] if facts.pixels is None else facts.pixels
    return make_task(
        config.task, dataset.classes, dataset.splits["train"].targets, counts, ignore=dataset.ignore
    )


def _decide(
    job: Job, record_of: Callable[[Job, Probe | None], dict[str, Any]], split: dict[str, Any]
) -> Prepared:
    """What is decided by trying: whether features are kept, who decodes, and how many steps fit into a time budget."""
    chosen = choose_features(job)
    job = replace(job, cut=chosen.cut, views=chosen.views)
    workers = _choose_workers(job)
    job = replace(job, workers=workers.value)
    measured = probe(job) if job.config.train.time_budget is not None else None
    if measured is not None:
        job = _within_budget(job, measured)
    record = record_of(job, measured)
    record["data"]["split"] = split
    record["features"] = chosen.to_json()
    record["workers"] = workers.to_json()
    return Prepared(job, record)


def _choose_workers(job: Job) -> WorkersChoice:
    if job.config.data.workers != "auto":
        return WorkersChoice(job.workers, "given")
    # Kept features are computed once: decoded images need nobody to hurry for them.
    is_waited_for = job.device.type != "cpu" and job.cut is None
    numbers = candidates(job.dataset.splits["train"], is_waited_for, job.world.local_size)
    speeds = speeds_of_workers(job, numbers) if numbers else {}
    return WorkersChoice.fastest(speeds) if speeds else WorkersChoice(job.workers, "rule")


def _augment(
    config: Config, reference: WeightsReference, resolved: dict[str, Any] | None
) -> tuple[Augment, str]:
    """The parent's augmentation wins over `auto`; single settings win over both."""
    if resolved is not None:
        return Augment(**resolved["augment"]["settings"]), resolved["augment"]["origin"]
    data, parent = config.data, reference.run
    if data.augment == "auto" and parent is not None:
        settings, origin = dict(parent.resolved["augment"]["settings"]), f"recorded in {parent.path}"
    elif data.augment == "auto":
        settings, origin = Augment.level("light"), "light, the default"
    else:
        settings, origin = Augment.level(data.augment), data.augment
    changed = Augment.given(data)
    if changed:
        origin += ", with --" + " --".join(name.replace("_", "-") for name in changed)
    return Augment(**{**settings, **changed, "seed": config.train.seed}), origin


def _mixing(config: Config, augment: Augment, dataset: Dataset) -> Mixing | None:
    """Mixup and CutMix, which pair the images as the epoch's order has them."""
    mixup = augment.mixup if dataset.ignore is None else 0.0  # a parent's: ids of masks cannot be blended
    if not (mixup or augment.cutmix):
        return None
    targets, accumulate = dataset.splits["train"].targets, config.optim.accumulate

    def order(epoch: int) -> np.ndarray:
        windows = training_windows(targets, config.data, accumulate, config.train.seed, epoch)
        return np.concatenate([*chain.from_iterable(windows)])

    return Mixing(mixup, augment.cutmix, len(dataset.classes), augment.seed, order)


def _pace(config: Config, dataset: Dataset, steps_done: Callable[[int], int]) -> Pace:
    train, targets = config.train, dataset.splits["train"].targets
    per_epoch = len(training_windows(targets, config.data, config.optim.accumulate, train.seed, 0))
    total = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    assert train.eval_every and train.save_every and train.log_every, "the rules require intervals"
    done = steps_done(per_epoch)
    if done and done >= total:
        raise UserError(
            f"nothing is left to do: the parent has done {done} steps ({done / per_epoch:.4g} epochs), "
            f"and this run would end at step {total}",
            f"--epochs above {done / per_epoch:.4g}, which is the new total"
            + ("" if train.max_steps is None else f", and --max-steps none or above {done}"),
            f"--epochs {-(-done // per_epoch) + train.epochs}, or --keep weights, which counts from 0",
        )
    *early, (last, _) = train.eval_every.parts
    limits = [until.steps(per_epoch) for _, until in early if until]
    if limits != sorted(set(limits)):
        raise UserError(
            f"--eval-every {train.eval_every}: its limits are the steps {listing(limits)}", "limits that rise"
        )
    return Pace(
        steps_per_epoch=per_epoch,
        total_steps=total,
        eval_every=last.steps(per_epoch),
        save_every=0 if train.save_every.unit == "seconds" else train.save_every.steps(per_epoch),
        log_every=train.log_every.steps(per_epoch),
        max_seconds=train.time_budget.amount if train.time_budget else None,
        first_step=done,
        eval_before=tuple(
            (until.steps(per_epoch), interval.steps(per_epoch)) for interval, until in early if until
        ),
        save_seconds=train.save_every.amount if train.save_every.unit == "seconds" else None,
    )


def expected_seconds(job: Job, measured: Probe) -> float:
    """Seconds of the whole run: its steps and its validations (val, and as many training images)."""
    num_images = 2 * len(job.dataset.splits.get("val", ()))
    splits = job.dataset.splits
    num_kept = job.views * len(splits["train"]) + num_images + len(splits.get("test", ()))
    return (
        (job.pace.total_steps - job.pace.first_step) * measured.seconds_per_step
        + job.pace.num_evals * num_images * measured.seconds_per_eval_image
        + num_kept * measured.seconds_per_feature_image
    )


def _within_budget(job: Job, measured: Probe) -> Job:
    """Shorten the run so that it fits its time budget, and its schedule with it."""
    assert job.pace.max_seconds is not None
    share = min(1.0, job.pace.max_seconds / expected_seconds(job, measured))
    first = job.pace.first_step
    total = first + max(1, int((job.pace.total_steps - first) * share))
    pace = replace(job.pace, total_steps=total)
    schedule = make_schedule(job.config.optim, total, pace.steps_per_epoch)
    log.info("time budget %gs: %d of %d steps fit", job.pace.max_seconds, total, job.pace.total_steps)
    return replace(job, pace=pace, schedule=schedule)


def _check_settings(job: Job) -> None:
    num = len(job.dataset.splits["train"])
    if job.config.data.sampler == "balanced" and job.dataset.splits["train"].targets.ndim > 1:
        raise UserError(
            "--sampler balanced needs one class per image, and these images have several labels",
            "--sampler shuffle",
            "--class-weights balanced weighs rare labels instead",
        )
    has_live_norms = any(row.norms == "train" for row in job.plan.rows)
    if has_live_norms and min(num, job.config.data.batch_size) < 2 * job.world.size > 2:
        raise UserError(
            f"BatchNorm layers cannot learn from single images, and --batch-size {job.config.data.batch_size} is "
            f"divided among {job.world.size} processes",
            f"--batch-size {2 * job.world.size} or more",
            "or hold the norms still with --freeze-bn",
        )
    if has_live_norms and min(num, job.config.data.batch_size) == 1:
        raise UserError(
            "BatchNorm layers cannot learn from batches of one image",
            "--batch-size 2 or more and at least 2 training images",
            "or hold the norms still with --freeze-bn",
        )
    if "val" not in job.dataset.splits:
        needy = {
            "--patience": job.config.train.patience is not None,
            "--scheduler plateau": job.config.optim.scheduler == "plateau",
        }
        for setting in (name for name, is_set in needy.items() if is_set):
            raise UserError(
                f"{setting} needs validation images, and there are none", "a val split", "raise --val-ratio"
            )
