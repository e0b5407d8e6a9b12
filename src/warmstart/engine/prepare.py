"""From a config to a `Job`: every computed value is decided here once, and recorded for resume."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from warmstart import __version__
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import Config
from warmstart.console import log, progress
from warmstart.data.augment import Augment
from warmstart.data.batches import View, epoch_order, epoch_windows
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.workers import resolve_workers
from warmstart.engine.job import Job, Pace
from warmstart.engine.optimizer import check_optimizer
from warmstart.engine.probe import Probe, probe
from warmstart.engine.schedule import make_schedule
from warmstart.errors import UserError
from warmstart.inference.device import resolve_device, resolve_precision
from warmstart.inference.reference import WeightsReference, resolve_weights
from warmstart.models.build import BuiltModel, build
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.tasks.classification import Classification, resolve_class_weights

_VERSIONED = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "safetensors")


@dataclass(frozen=True)
class Prepared:
    """A job, and what was computed on the way to it (the content of resolved.json)."""

    job: Job
    resolved: dict[str, Any]


def prepare(
    config: Config, origins: dict[str, str], run: Path, resolved: dict[str, Any] | None = None
) -> Prepared:
    """Open the data, build the model, plan, and turn durations into steps.

    `resolved` is what an earlier start of the same run recorded: its values are taken instead of being
    computed again, so that a resumed run is the run that was started.

    Raises:
        UserError: whatever the data, the weights or the plan refuse.
    """
    device = resolve_device(config.train.device)
    check_optimizer(config.optim, device)
    precision, warning = resolve_precision(config.train.precision, device)
    if warning:
        log.warning(warning)
    reference = resolve_weights(config.model.weights)
    dataset, split = _open_dataset(config, reference, resolved)
    built = _build(config, dataset, reference, device)
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    plan = make_plan(built.blocks, sizes, config.adapt, config.optim)
    augment, augment_origin = _augment(config, reference, resolved)
    pace = _pace(config, dataset) if resolved is None else Pace(**resolved["pace"])
    weights = resolve_class_weights(config.task.class_weights, dataset.classes, dataset.facts.counts["train"])
    job = Job(
        run=run,
        config=config,
        dataset=dataset,
        built=built,
        plan=plan,
        schedule=make_schedule(config.optim, pace.total_steps, pace.steps_per_epoch),
        task=Classification(dataset.classes, config.task.label_smoothing, weights),
        pace=pace,
        train_view=View(built.preprocessing, dataset.native, augment),
        workers=resolve_workers(config.data.workers, dataset.splits["train"]),
        eval_batch_size=config.data.eval_batch_size or 2 * config.data.batch_size,
        device=device,
        precision=precision,
    )
    _check_settings(job)
    measured: Probe | None = None
    if resolved is None and config.train.time_budget is not None:
        measured = probe(job)
        job = _within_budget(job, measured)
    recorded_augment = {"settings": asdict(augment), "origin": augment_origin}
    record = resolved or _record(job, reference, origins, recorded_augment, measured)
    if resolved is None:
        record["data"]["split"] = split
    return Prepared(job, record)


def _open_dataset(
    config: Config, reference: WeightsReference, resolved: dict[str, Any] | None
) -> tuple[Dataset, dict[str, Any]]:
    """The data, and the seed and ratios by which they are split.

    A run that goes on from a run on the same data keeps its parent's splits: with splits of its own, it
    would be tested on images that its parent was trained on.
    """
    split: dict[str, Any] = {"seed": config.train.seed}
    split |= {name: getattr(config.data, name) for name in ("train_ratio", "val_ratio")}
    if resolved is not None:
        return _open(config, resolved["data"]["split"], resolved), resolved["data"]["split"]
    dataset = _open(config, split, None)
    parent = reference.run.resolved["data"] if reference.run is not None else None
    if parent is not None and parent["fingerprint"] == dataset.facts.fingerprint and parent["split"] != split:
        log.warning(
            "the splits are those of %s, on whose training images the weights were trained", parent["path"]
        )
        known = {"data": {"quarantined": dataset.facts.quarantined, "fingerprint": parent["fingerprint"]}}
        return _open(config, parent["split"], known), parent["split"]
    return dataset, split


def _open(config: Config, split: dict[str, Any], resolved: dict[str, Any] | None) -> Dataset:
    """Read the data with these splits; what a run has `resolved` spares the scan."""
    known = None
    if resolved is not None:
        known = tuple((name, reason) for name, reason in resolved["data"]["quarantined"])
    ratios = {name: split[name] for name in ("train_ratio", "val_ratio")}
    settings = config.data.model_copy(update=ratios)
    with progress("reading the images", 1) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        dataset = open_dataset(settings, split["seed"], known, report)
    if resolved is not None and dataset.facts.fingerprint != resolved["data"]["fingerprint"]:
        raise UserError(
            f"the data in {config.data.path} have changed since the run was started",
            "the same files: a resumed run is the run that was started",
            "restore the data, or start a new run from this one's weights with `warmstart finetune`",
        )
    return dataset


def _build(config: Config, dataset: Dataset, reference: WeightsReference, device: torch.device) -> BuiltModel:
    data = config.data
    overrides = {"mean": data.mean, "std": data.std, "image_size": data.image_size, "crop_pct": data.crop_pct}
    settings = config.model.model_copy(update={"weights": reference.file or config.model.weights})
    built = build(settings, overrides, dataset.classes, config.train.seed)
    built.move_to(device)
    return built


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
    given = {name: getattr(data, name) for name in ("rotation", "crop_pad", "zoom", "flip")}
    changed = {name: value for name, value in given.items() if value is not None}
    settings |= changed
    if changed:
        origin += ", with --" + " --".join(name.replace("_", "-") for name in changed)
    return Augment(**{**settings, "seed": config.train.seed}), origin


def _pace(config: Config, dataset: Dataset) -> Pace:
    train, num = config.train, len(dataset.splits["train"])
    order = epoch_order(num, train.seed, 0)
    per_epoch = len(epoch_windows(order, config.data.batch_size, config.optim.accumulate))
    total = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    assert train.eval_every and train.save_every and train.log_every, "the rules require intervals"
    return Pace(
        steps_per_epoch=per_epoch,
        total_steps=total,
        eval_every=train.eval_every.steps(per_epoch),
        save_every=train.save_every.steps(per_epoch),
        log_every=train.log_every.steps(per_epoch),
        max_seconds=train.time_budget.amount if train.time_budget else None,
    )


def expected_seconds(job: Job, measured: Probe) -> float:
    """Seconds of the whole run: its steps and its validations (val, and as many training images)."""
    num_evals = 1 + -(-job.pace.total_steps // job.pace.eval_every)
    num_images = 2 * len(job.dataset.splits.get("val", ()))
    return (
        job.pace.total_steps * measured.seconds_per_step
        + num_evals * num_images * measured.seconds_per_eval_image
    )


def _within_budget(job: Job, measured: Probe) -> Job:
    """Shorten the run so that it fits its time budget, and its schedule with it."""
    assert job.pace.max_seconds is not None
    share = min(1.0, job.pace.max_seconds / expected_seconds(job, measured))
    total = max(1, int(job.pace.total_steps * share))
    pace = replace(job.pace, total_steps=total)
    schedule = make_schedule(job.config.optim, total, pace.steps_per_epoch)
    log.info("time budget %gs: %d of %d steps fit", job.pace.max_seconds, total, job.pace.total_steps)
    return replace(job, pace=pace, schedule=schedule)


def _check_settings(job: Job) -> None:
    num = len(job.dataset.splits["train"])
    has_live_norms = any(row.norms == "train" for row in job.plan.rows)
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
    num_classes = len(job.dataset.classes)
    if job.config.train.select_by == "top5" and num_classes <= 5:
        raise UserError(
            f"--select-by top5 cannot choose among {num_classes} classes: every answer would be right",
            "more than 5 classes",
            "--select-by accuracy",
        )


def _record(
    job: Job,
    reference: WeightsReference,
    origins: dict[str, str],
    augment: dict[str, Any],
    measured: Probe | None,
) -> dict[str, Any]:
    built, parent = job.built, reference.run
    return {
        "format": layout.FORMAT_VERSION,
        "warmstart": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONED}},
        "origins": origins,
        "seed": job.config.train.seed,
        "device": str(job.device),
        "precision": str(job.precision or torch.float32).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "workers": job.workers,
        "eval_batch_size": job.eval_batch_size,
        "lr": job.config.optim.lr,
        "original_lr": _original_lr(job, parent),
        "parent": None
        if parent is None
        else {"run": str(parent.path), "step": reference.step, "lr": parent.resolved["lr"]},
        "model": {
            "name": built.name,
            "source": built.source,
            "licence": built.licence,
            "head": asdict(built.head_change),
            "preprocessing": asdict(built.preprocessing),
        },
        "data": asdict(job.dataset.facts)
        | {"path": str(Path(job.config.data.path or "").resolve()), "native": job.dataset.native},
        "augment": augment,
        "pace": asdict(job.pace),
        "probe": measured.to_json() if measured else None,
    }


def _original_lr(job: Job, parent: Run | None) -> float | None:
    """The rate of the training from nothing that these weights go back to; None if nobody recorded it."""
    if parent is not None:
        return parent.resolved["original_lr"]
    return job.config.optim.lr if job.built.source["kind"] == "random" else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
