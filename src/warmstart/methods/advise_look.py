"""The facts of advice, looked up and measured: the data as a run opens them, the model as it is built, the machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from warmstart.data.batches import evaluation_batches
from warmstart.data.cache_folder import ram
from warmstart.engine.job import Job
from warmstart.engine.measure import train_subset
from warmstart.engine.prepare import Prepared
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.memory_watch import free_memory
from warmstart.inference.predictor import predict_outputs
from warmstart.methods.advise_facts import Facts
from warmstart.tasks.classification import Classification

_MOST_MEASURED = 256  # val images on which the start is looked at: its accuracy is then known to +-.06
_LEAST_ATTENTION = 0.1  # share of a transformer's parameters that are in attention modules
_SIDE = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)")


def gather(prepared: Prepared, goal: str, planned: int | None) -> Facts:
    """`planned` is the memory in bytes of the device to plan for; None: what is free on the job's own."""
    job, facts = prepared.job, prepared.job.dataset.facts
    counts = facts.counts["train"].values()
    change = job.built.head_change
    is_random = job.built.source["kind"] == "random"
    return Facts(
        task={"segmentation": "masks", "multi-label": "labels"}.get(job.task.name, "classes"),
        num_classes=len(facts.classes),
        num_train=facts.num_samples("train"),
        num_val=facts.num_samples("val"),
        num_test=facts.num_samples("test"),
        smallest=min(counts),
        largest=max(counts),
        height=facts.heights[1],
        width=facts.widths[1],
        num_channels=facts.num_channels,
        has_sides=any(_SIDE.search(name.lower()) for name in facts.classes),
        model=job.built.name,
        family=family(job.built.module),
        num_parameters=sum(p.numel() for p in job.built.module.parameters()),
        weights="random" if is_random else "trained",
        head=change.kind,
        num_known=0 if is_random else len(change.kept),
        start_accuracy=start_accuracy(job),
        original_lr=prepared.resolved["original_lr"] if not is_random else None,
        augment_recorded=prepared.resolved["augment"]["origin"].startswith("recorded in"),
        device=job.device.type,
        device_memory=planned or free_memory(job.device),
        is_planned=planned is not None,
        num_gpus=torch.cuda.device_count(),
        ram=ram() or None,
        disk=_disk(job.run),
        goal=goal,
        is_contrastive=job.built.text is not None and job.built.text.loss is not None,
    )


def family(module: nn.Module) -> str:
    """`transformer` where a tenth of the parameters or more are in attention modules, else `convolutional`.

    (Squeeze-and-excite and pooling by attention are less than that, in convolutional networks.)
    """
    names = [path for path, child in module.named_modules() if "attention" in type(child).__name__.lower()]
    prefixes = tuple(f"{path}." for path in names)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    inside = sum(size for name, size in sizes.items() if prefixes and name.startswith(prefixes))
    return "transformer" if inside >= _LEAST_ATTENTION * sum(sizes.values()) else "convolutional"


def start_accuracy(job: Job) -> float | None:
    """On val, before any training; None where the head knows other classes, or nothing says one class per image."""
    splits, built = job.dataset.splits, job.built
    if built.head_change.kind != "kept" or not isinstance(job.task, Classification) or "val" not in splits:
        return None
    samples = train_subset(splits["val"], _MOST_MEASURED, job.config.train.seed)
    batches = evaluation_batches(
        samples, built.preprocessing, job.dataset.native, job.eval_batch_size, job.workers
    )
    inputs = InputBuffer(built.preprocessing, job.device, built.channels_last)
    outputs = predict_outputs(built.module, batches, inputs, job.precision)
    return job.task.evaluate(outputs, samples.targets)["accuracy"]


def _disk(run: Path) -> int | None:
    """Bytes that are free where the run would be written."""
    return shutil.disk_usage(next(_existing(run.absolute()))).free


def _existing(path: Path) -> Iterator[Path]:
    return (place for place in (path, *path.parents) if place.exists())
