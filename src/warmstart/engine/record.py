"""resolved.json: what a run computed and measured on its way to a job, for people and for `resume`."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from warmstart import __version__
from warmstart.config.places import absolute
from warmstart.data.store import StoredPixels
from warmstart.engine.job import Job
from warmstart.engine.probe import Probe
from warmstart.inference.reference import WeightsReference
from warmstart.models.adapters.four_bit import quantisation_errors
from warmstart.models.macs import macs_per_image
from warmstart.run import layout
from warmstart.run.reader import Run

_VERSIONED = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "opencv-python-headless",
    "safetensors",
    "transformers",
    "segmentation-models-pytorch",
)


def make_record(
    job: Job,
    reference: WeightsReference,
    origins: dict[str, str],
    augmented_by: str,
    measured: Probe | None,
) -> dict[str, Any]:
    """`origins` are those of the settings, `augmented_by` is that of the augmentation."""
    built, parent, augment = job.built, reference.run, job.train_view.augment
    assert augment is not None, "a view of training"
    return {
        "format": layout.FORMAT_VERSION,
        "warmstart": __version__,
        "versions": versions(),
        "origins": origins,
        "seed": job.config.train.seed,
        "device": str(job.device),
        "precision": str(job.precision or torch.float32).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "num_processes": job.world.size,
        "eval_batch_size": job.eval_batch_size,
        "task": "several tasks" if job.lanes else job.task.name,
        "select_by": job.select_by,
        "lr": job.config.optim.lr,
        "original_lr": _original_lr(job, parent),
        "parent": None
        if parent is None
        else {"run": str(parent.path), "step": reference.step, "lr": parent.resolved["lr"]},
        "model": {
            "name": built.name,
            "classes": list(built.classes),
            "source": built.source,
            "licence": built.licence,
            "macs": None if job.lanes else macs_per_image(built),
            "head": asdict(built.head_change),
            "margin": None if built.margin is None else asdict(built.margin),
            "lora": None if built.lora is None else asdict(built.lora),
            "quantisation_errors": quantisation_errors(built.module.state_dict()),
            "preprocessing": asdict(built.preprocessing),
        },
        "data": asdict(job.dataset.facts)
        | {"path": absolute(job.config.data.path or ""), "native": job.dataset.native, "store": _store(job)},
        "sources": [source.to_json() for source in job.sources],
        "mixture": None if job.dataset.mixture is None else _mixture(job),
        "retained": None
        if job.retained is None
        else {
            "path": absolute(job.retained.path),
            "split": job.retained.split,
            "num_samples": len(job.retained.samples),
        },
        "teachers": [] if job.teachers is None else [each.to_json() for each in job.teachers.each],
        "hints": [asdict(pair) for pair in job.hint_pairs],
        "augment": {"settings": asdict(augment), "origin": augmented_by},
        "pace": asdict(job.pace),
        "probe": measured.to_json() if measured else None,
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that compute; None: not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONED}}


def _store(job: Job) -> str | None:
    """Where decoded images are kept; None where they are not."""
    pixels = job.dataset.splits["train"].pixels
    return pixels.where if isinstance(pixels, StoredPixels) else None


def _mixture(job: Job) -> dict[str, list[int]]:
    """Data set -> its places in each epoch."""
    mixture = job.dataset.mixture
    assert mixture is not None, "asked for only where there is one"
    places = [mixture.numbers(epoch) for epoch in range(job.config.train.epochs)]
    names = ("--data", *(part.name for part in mixture.parts))
    return {name: [numbers[row] for numbers in places] for row, name in enumerate(names)}


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
