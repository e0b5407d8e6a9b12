"""Cross-field rules: contradictions are problems, settings without effect are named. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from glob import glob
from pathlib import Path

from warmstart.config.distill_rules import distill_problems, unread_distill_settings
from warmstart.config.lora_rules import lora_problems, unread_lora_settings
from warmstart.config.loss_rules import loss_problems, unread_loss_settings
from warmstart.config.mask_values import is_file_of_colours
from warmstart.config.meta_rules import meta_problems, unread_meta_settings
from warmstart.config.mix_rules import flag_of, mix_problems, named_paths, unread_retain_settings
from warmstart.config.ocec import grid_problem, is_ocec, shape_of
from warmstart.config.output_rules import output_problems
from warmstart.config.places import TORCHVISION, expanded, is_path
from warmstart.config.schema import Config, leaves
from warmstart.config.stage_rules import (
    stage_problems,
    stage_warnings,
    unread_stage_settings,
    waits_for_plateau,
)
from warmstart.config.tasks_rules import tasks_problems
from warmstart.config.text_rules import text_problems
from warmstart.config.values import Cadence
from warmstart.errors import UserError, closest

# A schedule's own settings: leaf -> the schedulers that read it.
_SCHEDULER_READERS = {
    "scheduler_step": ("step",),
    "scheduler_gamma": ("step", "exponential", "plateau"),
    "scheduler_patience": ("plateau",),
    "min_lr": ("cosine", "linear", "step", "exponential", "plateau"),
}
_MOMENTUM_FREE = (
    "adam",
    "adamw",
    "nadam",
    "nadamw",
    "radam",
    "adamax",
    "adagrad",
    "lamb",
    "lion",
    "adafactor",
)

_UNITS = {"steps": "500steps", "epochs": "2epochs", "seconds": "10m", "share": "a share such as .1"}


def problems(config: Config, origins: Mapping[str, str]) -> list[UserError]:
    """Everything that contradicts itself or cannot be read, before any download, decode or device work.

    `origins` are those of the settings that were given, by path.
    """
    return (
        _contradictions(config) + lora_problems(config, origins) + _inputs(config) + output_problems(config)
    )


def _contradictions(config: Config) -> list[UserError]:
    data, optim, train = config.data, config.optim, config.train
    found = []
    if data.train_ratio + data.val_ratio > 1 + 1e-9:
        found.append(
            UserError(
                f"--train-ratio {data.train_ratio:g} and --val-ratio {data.val_ratio:g} add up to more than 1",
                "their sum at most 1; what is left becomes the test split",
            )
        )
    if (data.mean is None) != (data.std is None):
        found.append(UserError("only one of --mean and --std is given", "both or neither"))
    if data.mean and data.std and len(data.mean) != len(data.std):
        found.append(
            UserError(
                f"--mean has {len(data.mean)} values and --std {len(data.std)}",
                "as many, one per channel of the model: 1 (grey), 3 (RGB), or the channels of the images",
            )
        )
    if data.std and min(data.std) <= 0:
        found.append(UserError(f"--std holds {min(data.std):g}", "deviations above 0"))
    if optim.min_lr > optim.lr:
        found.append(
            UserError(f"--min-lr {optim.min_lr:g} is above --lr {optim.lr:g}", "a floor below the rate")
        )
    if data.mine is not None and data.sampler == "balanced":
        found.append(
            UserError(
                "--mine and --sampler balanced both say how often an image comes",
                "one of them",
                "--class-weights balanced beside --mine",
            )
        )
    intervals = {name: getattr(train, name) for name in ("eval_every", "save_every", "log_every")}
    found += [
        UserError(f"--{name.replace('_', '-')} is none", "an interval such as 1epochs or 500steps")
        for name, interval in (intervals | {"scheduler_step": optim.scheduler_step}).items()
        if interval is None
    ]
    found += stage_problems(config) + loss_problems(config.task) + mix_problems(config)
    found += text_problems(config) + distill_problems(config) + tasks_problems(config) + meta_problems(config)
    return found + _durations(config)


def _durations(config: Config) -> list[UserError]:
    found = []
    for section, name, units in (
        ("train", "eval_every", ("steps", "epochs")),
        ("train", "save_every", ("steps", "epochs", "seconds")),
        ("train", "log_every", ("steps", "epochs")),
        ("optim", "scheduler_step", ("steps", "epochs")),
        ("optim", "warmup", ("steps", "epochs", "share")),
        ("optim", "stage_warmup", ("steps", "epochs")),
        ("train", "time_budget", ("seconds",)),
        ("task", "margin_ramp", ("steps", "epochs")),
    ):
        given = getattr(getattr(config, section), name)
        for value in given.durations if isinstance(given, Cadence) else filter(None, (given,)):
            if value.unit not in units:
                expected = " or ".join(_UNITS[unit] for unit in units)
                found.append(UserError(f"--{name.replace('_', '-')} {value} is in {value.unit}", expected))
    return found


def _inputs(config: Config) -> list[UserError]:
    found = []
    if config.data.path is None:
        found.append(UserError("--data is missing", "class folders, IDX files, or a CSV or parquet file"))
    elif is_path(config.data.path) and not _exists(expanded(config.data.path)):
        found.append(missing_path("--data", config.data.path))
    if config.data.download and not (config.data.path or "").startswith(TORCHVISION):
        found.append(
            UserError(
                f"--download: {config.data.path} is nothing that could be fetched",
                "a data set of torchvision, such as --data torchvision:FashionMNIST",
                "leave --download out",
            )
        )
    found += [
        missing_path(flag_of(config, path), path)
        for path in named_paths(config)
        if is_path(path) and not _exists(expanded(path))
    ]
    found += _mask_files(config)
    if config.data.mine is not None and not _exists(config.data.mine):
        found.append(missing_path("--mine", config.data.mine))
    if config.model.name is None and config.model.weights is None:
        found.append(
            UserError(
                "neither --model nor --weights is given",
                "a checkpoint to start from (--weights FILE), a zoo's model (--model timm:NAME), or both",
            )
        )
    elif config.model.name is None and config.model.weights == "none":
        found.append(
            UserError(
                "--weights none says nothing about the model",
                "--model timm:NAME, torchvision:NAME or builtin:NAME",
            )
        )
    found += _builtin(config)
    weights = config.model.weights
    named = [("--weights", weights)] if weights not in (None, "none") else []
    named += [("--teacher", name) for name in config.distill.teacher if not name.startswith("hf:")]
    return found + [
        missing_path(flag, name) for flag, name in named if name is not None and not _is_there(name)
    ]


def _is_there(weights: str) -> bool:
    """A file, a folder, RUN@step, or a glob that matches."""
    return any(map(_exists, (weights, weights.rpartition("@")[0]))) or bool(
        glob(weights)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    )


def _builtin(config: Config) -> list[UserError]:
    """A variant that there is none of, and a token grid that the images do not fit."""
    name, size = (config.model.name or "").removeprefix("builtin:"), config.data.image_size
    if not is_ocec(name):
        return []
    try:
        shape = shape_of(name)
        problem = grid_problem(shape, size) if size is not None else None
    except UserError as error:
        return [error]
    return [] if problem is None else [problem]


def _mask_files(config: Config) -> list[UserError]:
    """Files that say what ids mean; they may also lie beside the data, and are read with them."""
    data, files = config.data, {}
    if len(data.mask_classes) == 1:
        files["--mask-classes"] = data.mask_classes[0]
    if data.mask_colours is not None and is_file_of_colours(data.mask_colours):
        files["--mask-colours"] = data.mask_colours
    root = Path(expanded(data.path or ""))
    return [
        missing_path(flag, file)
        for flag, file in files.items()
        if not any(_exists(str(place)) for place in (expanded(file), root / file, root.parent / file))
    ]


def _exists(path: str) -> bool:
    """A name that the system refuses (too long, say) does not exist either."""
    try:
        return path != "" and Path(path).exists()
    except OSError:
        return False


def missing_path(flag: str, path: str) -> UserError:
    """A path that does not exist, with the nearest sibling's name."""
    target = Path(expanded(path))
    try:
        hint = closest(target.name, [entry.name for entry in target.parent.iterdir()])
    except (FileNotFoundError, NotADirectoryError):
        hint = f"its folder {target.parent} does not exist either"
    except OSError as error:
        hint = f"its folder {target.parent} cannot be read: {error.strerror}"
    return UserError(f"{flag}: {path} does not exist", "an existing path", hint)


def warnings(config: Config, origins: dict[str, str]) -> list[str]:
    """Settings that were given, and that nothing in this run reads.

    Values from a file that equal the default are left alone: every run's config.yaml holds them all.
    """
    optim, output = config.optim, config.output
    changed = {
        leaf.path
        for leaf in leaves()
        if origins.get(leaf.path) == "flag"
        or getattr(getattr(config, leaf.section), leaf.name) != leaf.default
    }
    found = []
    for name, schedulers in _SCHEDULER_READERS.items():
        if name == "scheduler_patience" and waits_for_plateau(config):
            continue
        if f"optim.{name}" in changed and optim.scheduler not in schedulers:
            readers = " or ".join(schedulers)
            found.append(
                f"--{name.replace('_', '-')} has no effect with --scheduler {optim.scheduler} (read by {readers})"
            )
    for name, reason in unread_loss_settings(config.task).items():
        if f"task.{name}" in changed:
            found.append(f"--{name.replace('_', '-')} has no effect {reason}")
    flags = {leaf.path: leaf.flag for leaf in leaves()}
    unread = unread_stage_settings(config) | unread_lora_settings(config.lora)
    unread |= unread_distill_settings(config) | unread_meta_settings(config)
    for path, reason in unread.items():
        if path in changed:
            found.append(f"--{flags[path]} has no effect {reason}")
    found += stage_warnings(config)
    if config.task.margin_method == "none":
        for name in ("margin", "margin_scale", "margin_eval_scale", "margin_ramp"):
            if f"task.{name}" in changed:
                found.append(f"--{name.replace('_', '-')} has no effect with --margin-method none")
    if config.retain.path is not None:
        found += [
            f"--retain.{name.replace('_', '-')} has no effect without --retain.{reader}"
            for name, reader in unread_retain_settings(config).items()
            if f"retain.{name}" in changed
        ]
    if "optim.momentum" in changed and optim.optimizer.lower() in _MOMENTUM_FREE:
        found.append(
            f"--momentum has no effect with --optimizer {optim.optimizer} (read by sgd and its relatives)"
        )
    if "data.views" in changed and config.data.feature_cache == "off" and not config.distill.teacher:
        found.append("--views has no effect with --feature-cache off")
    if config.data.mine is None:
        for name in ("mine_weight", "mine_prob"):
            if f"data.{name}" in changed:
                found.append(f"--{name.replace('_', '-')} has no effect without --mine")
    if "data.cache_dir" in changed and config.data.cache == config.data.feature_cache == "off":
        found.append("--cache-dir has no effect with --cache off and --feature-cache off")
    if config.data.sampler == config.task.class_weights == "balanced":
        found.append("--sampler balanced and --class-weights balanced correct the same imbalance twice")
    if output.output_dir is not None:
        for name in ("runs_dir", "name"):
            if f"output.{name}" in changed:
                found.append(f"--{name.replace('_', '-')} has no effect beside --output-dir")
    return found
