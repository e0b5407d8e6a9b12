"""From a config to a `Job`: every computed value is decided here once, and recorded for resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.adapt.patterns import freeze_text_tower, with_margin_head
from warmstart.adapt.plan import Plan, make_plan
from warmstart.config.schema import Config
from warmstart.config.tasks_rules import is_multitask
from warmstart.console import log
from warmstart.data.augment import Augment
from warmstart.data.dataset import Dataset
from warmstart.data.mixing import Mixing
from warmstart.data.mixture import training_windows
from warmstart.data.workers import WorkersChoice, candidates, resolve_workers
from warmstart.engine.adapter_probe import check_adapters
from warmstart.engine.asked import lanes_of, metric_of, task_of, view_of
from warmstart.engine.checks import check_settings
from warmstart.engine.compiled import check_compiler
from warmstart.engine.distributed import SOLO, World
from warmstart.engine.episodes import episodes_record, plan_episodes
from warmstart.engine.feature_plan import choices_from_json, choices_to_json, choose_features, kept_features
from warmstart.engine.job import Bar, Job, Pace, samples_of
from warmstart.engine.lessons.hints import match_hints
from warmstart.engine.lessons.teachers import open_teachers
from warmstart.engine.opening.captions import read_captions
from warmstart.engine.opening.mining import find_mined, sample_weights
from warmstart.engine.opening.open_inputs import Inputs, open_inputs
from warmstart.engine.opening.text_tower import text_remarks
from warmstart.engine.optimizer import check_optimizer
from warmstart.engine.pace import make_pace, within_budget
from warmstart.engine.probe import Probe, probe, speeds_of_workers
from warmstart.engine.recomputed import choose_recomputed
from warmstart.engine.record import make_record
from warmstart.engine.schedule import make_schedule
from warmstart.engine.several.lanes import frozen_heads, lanes_record
from warmstart.engine.several.open_tasks import open_tasks
from warmstart.errors import UserError
from warmstart.inference.device import resolve_device, resolve_precision
from warmstart.inference.reference import WeightsReference, resolve_weights
from warmstart.models.build import BuiltModel
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.task import Task


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
    open_both: Callable[..., Inputs] = open_inputs,
) -> Prepared:
    """Open the data, build the model, plan, and turn durations into steps; `steps_done` is the first of them.

    `resolved` is what an earlier start of the same run, or its first process, recorded: its values are taken instead of
    being computed again, so that a resumed run is the run that was started. `open_both` gives data and model.

    Raises:
        UserError: whatever the data, the weights or the plan refuse.
    """
    device, precision = _device(config, world)
    reference = resolve_weights(config.model.weights)
    opened = (open_tasks if is_multitask(config) else open_both)(config, reference, run, resolved, device)
    dataset, built = opened.dataset, opened.built
    augment, augment_origin = _augment(config, reference, resolved)
    lanes = lanes_of(config, opened, augment)
    pace = Pace(**resolved["pace"]) if resolved else make_pace(config, dataset, steps_done, samples_of(lanes))
    task = lanes[0].task if lanes else task_of(config, dataset, built)
    is_gpu = device.type != "cpu"
    weights = sample_weights(mined := find_mined(config.data, dataset, resolved), dataset.splits["train"])
    job = Job(
        run=run,
        config=config,
        dataset=dataset,
        built=_answering(built, task),
        plan=_plan(config, built, _episodes_of(reference, resolved), frozen_heads(opened.tasks)),
        schedule=make_schedule(config.optim, pace.total_steps, pace.steps_per_epoch),
        task=task,
        select_by=metric_of(config, lanes, task),
        pace=pace,
        train_view=view_of(built, dataset, augment, _mixing(config, augment, dataset, weights)),
        workers=resolve_workers(config.data.workers, dataset.training, is_gpu, world.local_size),
        eval_batch_size=config.data.eval_batch_size or 2 * config.data.batch_size,
        world=world,
        device=device,
        precision=precision,
        bar=None if resolved is None else Bar.recorded(resolved),
        sample_weights=weights,
        sources=opened.sources,
        retained=opened.retained,
        captions=read_captions(config, dataset, built, device),
        lanes=lanes,
    )
    check_settings(job)
    job = _taught(job, resolved)
    if resolved is not None:
        return _decided(job, resolved)

    def complete(job: Job, measured: Probe | None) -> dict[str, Any]:
        made = make_record(job, reference, origins, augment_origin, measured) | lanes_record(job)
        return made | {"mined": mined, "episodes": episodes_record(job)}

    return _decide(job, complete, opened.split)


def _taught(job: Job, resolved: dict[str, Any] | None) -> Job:
    """The job with its teachers, and the maps that are drawn to theirs; `resolved` says which they were."""
    recorded = None if resolved is None else resolved.get("teachers", [])
    distill = job.config.distill
    teachers = open_teachers(distill, job.built, job.task, job.device, recorded)
    pairs = () if teachers is None or not distill.hints else match_hints(job.built, teachers, job.plan)
    return replace(job, teachers=teachers, hint_pairs=pairs)


def _episodes_of(reference: WeightsReference, resolved: dict[str, Any] | None) -> dict[str, Any] | None:
    """What this run recorded of its episodes when it was started, or the run that its weights are of."""
    if resolved is None and reference.run is not None:
        resolved = reference.run.resolved
    return None if resolved is None else resolved.get("episodes")


def _plan(
    config: Config, built: BuiltModel, episodes: dict[str, Any] | None, frozen: tuple[str, ...] = ()
) -> Plan:
    """`frozen` are blocks that do not train whatever the settings say."""
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    names = [block.name for block in built.blocks]
    adapt = freeze_text_tower(config.adapt, config.text, names)
    adapt = adapt if built.margin is None else with_margin_head(adapt, names)
    adapt = adapt.model_copy(update={"freeze": (*adapt.freeze, *frozen)})
    if config.meta.is_on:
        has_none = built.source["kind"] == "random" if episodes is None else episodes["own_statistics"]
        return plan_episodes(config, built, sizes, adapt, own_statistics=has_none)
    plan = make_plan(built.blocks, sizes, adapt, config.optim)
    return replace(plan, remarks=text_remarks(config, built, plan.rows))


def _answering(built: BuiltModel, task: Task) -> BuiltModel:
    """The model with what its outputs mean."""
    decision = task.decision if isinstance(task, Classification) else None
    return replace(built, multi_label=isinstance(task, MultiLabel), decision=decision)


def _device(config: Config, world: World) -> tuple[torch.device, torch.dtype | None]:
    """The device, on which the optimizer and the compiler work, and the precision of the forward pass there."""
    if is_multitask(config) and world.size > 1:
        raise UserError(
            f"several tasks in {world.size} processes: a mean would be one over a part of a micro-batch",
            "one process",
            "start it without a launcher",
        )
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
    kept = kept_features(choices_from_json(resolved["features"]))
    workers = job.workers if job.config.data.workers != "auto" else resolved["workers"]["value"]
    recomputed = tuple(resolved.get("recomputed", ()))  # absent in older runs
    return Prepared(replace(job, kept=kept, recomputed=recomputed, workers=workers), resolved)


def _decide(
    job: Job, record_of: Callable[[Job, Probe | None], dict[str, Any]], split: dict[str, Any]
) -> Prepared:
    """What is decided by trying: whether features are kept, who decodes, and how many steps fit into a time budget."""
    job = replace(job, plan=replace(job.plan, notes=(*job.plan.notes, *check_adapters(job))))
    chosen = choose_features(job)
    job = replace(job, kept=kept_features(chosen), recomputed=choose_recomputed(job))
    workers = _choose_workers(job)
    job = replace(job, workers=workers.value)
    measured = probe(job) if job.config.train.time_budget is not None else None
    if measured is not None:
        job = within_budget(job, measured)
    record = record_of(job, measured)
    record["data"]["split"] = split
    record["features"] = choices_to_json(chosen)
    record["recomputed"] = list(job.recomputed)
    record["workers"] = workers.to_json()
    return Prepared(job, record)


def _choose_workers(job: Job) -> WorkersChoice:
    if job.config.data.workers != "auto":
        return WorkersChoice(job.workers, "given")
    if job.lanes:
        return WorkersChoice(job.workers, "rule")
    # Kept features are computed once: decoded images need nobody to hurry for them.
    is_waited_for = job.device.type != "cpu" and any(kept.cut is None for kept in job.kept)
    numbers = candidates(job.dataset.training, is_waited_for, job.world.local_size)
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
    pairs = (
        dict.fromkeys(("mixup", "cutmix"), 0.0) if is_multitask(config) or config.meta.is_on else {}
    )  # a parent's, of one data set
    return Augment(**{**settings, **changed, **pairs, "seed": config.train.seed}), origin


def _mixing(
    config: Config, augment: Augment, dataset: Dataset, weights: np.ndarray | None = None
) -> Mixing | None:
    """Mixup and CutMix, which pair the images as the epoch's order has them."""
    mixup = augment.mixup if dataset.ignore is None else 0.0  # a parent's: ids of masks cannot be blended
    if not (mixup or augment.cutmix):
        return None

    def order(epoch: int) -> np.ndarray:
        windows = training_windows(dataset, config, epoch, weights)
        return np.concatenate([*chain.from_iterable(windows)])

    return Mixing(mixup, augment.cutmix, len(dataset.classes), augment.seed, order)
