"""The training after an edit: an ordinary run of the engine from the edited weights, on the run's own data."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from warmstart.config.compress_section import CompressConfig
from warmstart.config.io import Loaded, from_dict
from warmstart.config.rules import problems
from warmstart.config.schema import (
    AdaptConfig,
    Config,
    DistillConfig,
    LoraConfig,
    MetaConfig,
    OutputConfig,
    RetainConfig,
    TasksConfig,
    TextConfig,
)
from warmstart.config.section import Section
from warmstart.console import log, quiet
from warmstart.engine import train
from warmstart.engine.pace import expected_seconds
from warmstart.engine.prepare import prepare
from warmstart.engine.probe import probe
from warmstart.errors import UserError
from warmstart.methods.compress.subject import Subject
from warmstart.run import layout
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run


def recovery_config(subject: Subject, weights: str, folder: Path) -> Config:
    """The config of the subject's run, with everything that was about its own training left out.

    Raises:
        UserError: settings that contradict each other, as for any training.
    """
    run, settings = subject.run, subject.settings
    config = from_dict(run.config)
    lr = settings.lr or config.optim.lr
    teacher = (reference_of({"run": run.path.absolute(), "step": subject.restored.reference.step}),)
    changes: dict[str, dict[str, object]] = {
        "data": {
            "path": run.resolved["data"]["path"],
            "batch_size": settings.batch_size or config.data.batch_size,
            "limit": settings.limit if settings.limit is not None else config.data.limit,
            "workers": settings.workers,
            "mix": (),
            "mix_classes": (),
            "mine": None,
        },
        "model": {"weights": weights, "name": None},
        "optim": {
            "lr": lr,
            "min_lr": config.optim.min_lr * lr / config.optim.lr,
            "scheduler": "cosine",
            "warmup": None,
            "stage_warmup": None,
        },
        "train": {
            **{"epochs": settings.epochs, "seed": settings.seed, "device": settings.device},
            **dict.fromkeys(("max_steps", "time_budget", "patience", "ema")),
            **{"keep_checkpoints": 1, "compile": False},
        },
        "output": {
            "output_dir": str(folder),
            **config.output.model_dump(include={"tensorboard", "pictures"}),
        },
        "distill": {"teacher": teacher if settings.distil else ()},
    }
    fresh: dict[str, Section] = {
        **{"adapt": AdaptConfig(), "retain": RetainConfig(), "lora": LoraConfig(), "text": TextConfig()},
        **{
            "tasks": TasksConfig(),
            "meta": MetaConfig(),
            "distill": DistillConfig(),
            "output": OutputConfig(),
        },
    }
    config = config.model_copy(update=fresh)
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    config = config.model_copy(update=sections)
    # Whether the folder is free is decided where it is made.
    if found := problems(config.model_copy(update={"output": OutputConfig()}), {}):
        raise UserError.of_problems(found, "the settings of the recovery")
    return config


def recover(subject: Subject, weights: str, folder: Path) -> str:
    """Train from `weights` in the run directory `folder`, or finish what was begun there; the directory.

    Raises:
        UserError: an interruption, after which the same command goes on; whatever the engine refuses.
    """
    if not layout.is_run(folder):
        shutil.rmtree(folder, ignore_errors=True)  # begun, and ended before it was a run
        config = recovery_config(subject, weights, folder)
        return str(train.finetune(Loaded(config, {}, ())))
    if Run(folder).status.get("state") != "finished":
        train.resume(str(folder), {"device": None, "workers": None})
    return str(folder)


def seconds_of_recovery(subject: Subject, settings: CompressConfig, folder: Path) -> float:
    """What one recovery would take with the original model, by a probe of a few steps; smaller models take less."""
    reference = reference_of({"run": subject.run.path, "step": subject.restored.reference.step})
    with quiet():
        prepared = prepare(recovery_config(subject, reference, folder), {}, folder)
        return expected_seconds(prepared.job, probe(prepared.job))


def most_rounds(settings: CompressConfig) -> int:
    """How many a search may have."""
    if not settings.searches:
        return 1
    return min(settings.max_rounds, math.ceil(1 / settings.step) - 1)


def tell_cost(subject: Subject, settings: CompressConfig, folder: Path) -> float:
    """Say before it begins what the rounds take; the seconds."""
    if settings.method == "int8":
        num = len(subject.calibration().targets)
        log.info("nothing is trained: %d training images are seen, and val some times", num)
        return 0.0
    if not settings.epochs:
        return 0.0  # nothing is trained
    per_round, num = seconds_of_recovery(subject, settings, folder), most_rounds(settings)
    what = "1 round" if num == 1 else f"at most {num} rounds"
    log.info(
        "%s of %d epochs of recovery, about %.0f s each for a model as large as the original: %.0f s in all",
        what,
        settings.epochs,
        per_round,
        per_round * num,
    )
    return per_round * num
