"""What callers hand to the verbs (paths, names, arrays, modules, settings), made into what the parts below take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from warmstart import console
from warmstart.config import io as config_io
from warmstart.config.mask_values import LABEL_LEAVES
from warmstart.config.places import absolute, expanded
from warmstart.config.schema import DataConfig, DistillConfig, TextConfig
from warmstart.errors import UserError
from warmstart.run import layout, reader

if TYPE_CHECKING:
    from torch import nn

# a path or `torchvision:NAME`; or arrays, see `finetune`
Model: TypeAlias = "str | os.PathLike[str] | nn.Module"
Data = str | os.PathLike[str] | tuple[Any, Any] | Mapping[str, Any]

_ZOOS = ("timm", "torchvision", "builtin", "smp", "hf", "object")
# What a student takes over of how its teacher's data were read.
_OF_DATA = (
    *("label_columns", "masks", "mask_classes", "ignore", "mask_remap", "mask_colours", "flip_pairs"),
    *("group", "train_ratio", "val_ratio"),
)
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")


def keep_object(module: object, run: str | None, image_size: Any) -> str:
    """The name that stands for a Python object in this process; see `models.objects`."""
    from warmstart.inference.reference import keep_module

    size = config_io.validate_section(DataConfig, {"image_size": image_size}).image_size
    return keep_module(module, run, size)


def place_of(data: Data) -> str:
    """A path as it is; arrays are kept for this process under a name that stands for them."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    from warmstart.data.memory import keep

    return keep(data)


def settings_of(model: Model | None, data: Data | None, settings: dict[str, Any]) -> dict[str, Any]:
    """`model` may be a file, a run, or a zoo's name: told apart by whether something lies at that path."""
    given = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in settings.items()}
    if data is not None:
        given["data"] = place_of(data)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if model is not None and not isinstance(model, str):
        given["model"] = keep_object(model, None, settings.get("image_size"))
    elif model is not None:
        if settings.get("weights") is not None and Path(model).exists():
            raise UserError(
                f"{model} and weights={settings['weights']} both name weights",
                "one file or run to start from",
            )
        path = Path(model.rpartition("@")[0] or model)
        looks_like_path = "/" in model or path.suffix in _WEIGHT_SUFFIXES
        is_zoo = model.partition(":")[0] in _ZOOS  # smp:Unet/resnet18
        is_path = Path(model).exists() or path.exists() or (looks_like_path and not is_zoo)
        given["weights" if is_path else "model"] = model
    return given


def teaching_layer(given: dict[str, Any]) -> config_io.Layer | None:
    """The data of the first teacher that is a run, with what its labels and splits mean; None where data are given."""
    named = {} if given.get("teacher") is None else {"teacher": given["teacher"]}
    if given.get("data") is not None:
        return None
    for name in config_io.validate_section(DistillConfig, named).teacher:
        run = reader.split_reference(expanded(name))[0]
        if layout.is_run(run):
            found = reader.open_run(str(run))
            own = {f"data.{leaf}": found.config["data"].get(leaf) for leaf in _OF_DATA}
            values = {path: value for path, value in own.items() if value is not None}
            return config_io.Layer("teacher", values | {"data.path": found.resolved["data"]["path"]})
    return None


def check_same(run: str, given: str, recorded: str) -> None:
    if recorded not in (given, absolute(given)):
        raise UserError(f"{run} was started on {recorded}, not on {given}", "the same one, or none")


def labelled_data(data: Data | None, settings: dict[str, Any]) -> DataConfig:
    """Data to measure on; takes out of `settings` how labels are read, which is the run's where it was not given.

    Raises:
        UserError: such a setting without data.
    """
    found = {name: settings.pop(name, None) for name in LABEL_LEAVES}
    given = {
        name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in found.items() if v is not None
    }
    if data is not None:
        given["path"] = place_of(data)
    elif given:
        flag = next(iter(given)).replace("_", "-")
        raise UserError(f"--{flag} without --data", "the data that it is about", "name them with --data")
    return config_io.validate_section(DataConfig, given)


def zero_shot_of(
    model: str, data: DataConfig | None, settings: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The data's classes and the prompts, where they are asked for; takes both out of `settings`.

    Raises:
        UserError: prompts without --zero-shot, or no data.
    """
    is_asked, given = bool(settings.pop("zero_shot", None)), settings.pop("text_prompts", None)
    prompts = config_io.validate_section(TextConfig, {} if given is None else {"prompts": given}).prompts
    if not is_asked:
        if prompts:
            raise UserError("--text.prompts without --zero-shot", "both", "add --zero-shot")
        return None
    from warmstart.analysis.samples import class_names
    from warmstart.inference.reference import resolve_weights

    run = None if model.startswith("hf:") else resolve_weights(model).run
    return class_names(run, data), prompts


def restore_model(
    model: str,
    device: str,
    settings: dict[str, Any],
    zero_shot: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    merged: bool = False,
) -> tuple[Any, int]:
    """The model on its device, and the decoding threads; with `zero_shot` (classes, prompts) by its text tower.

    `merged`: with low-rank adapters added to the weights.
    """
    from warmstart.inference.device import resolve_device
    from warmstart.inference.restore import restore, restore_zero_shot

    given = {key: value for key, value in settings.items() if value is not None}
    module, name, task = (given.pop(key, None) for key in ("module", "model_name", "task"))
    if module is not None:
        name = keep_object(module, model, given.get("image_size"))
    workers = given.pop("workers", 0)
    unknown = set(given) - {"image_size", "mean", "std", "crop_pct"}
    if unknown:
        raise UserError(
            f"unknown setting {sorted(unknown)[0]!r}",
            "workers, module, model_name, task, image_size, mean, std, crop_pct",
        )
    data = config_io.validate_section(DataConfig, {**given, "workers": workers})
    overrides = {key: getattr(data, key) for key in given}
    threads = 0 if data.workers == "auto" else int(data.workers)
    if zero_shot is None:
        restored = restore(model, resolve_device(device), name, overrides, merged, task)
    elif task is not None:
        raise UserError(f"--task {task} beside --zero-shot", "one of the two", "leave one out")
    elif name is not None:
        raise UserError("--model-name has no use beside --zero-shot", "the model itself: hf:FOLDER, or a run")
    else:
        restored = restore_zero_shot(model, resolve_device(device), *zero_shot, overrides)
    for note in restored.built.notes:
        console.log.info("weights: %s", note)
    run = restored.reference.run
    if run is not None and run.unfinished is not None:
        console.log.warning("%s, step %s", run.unfinished, restored.reference.step)
    if run is None:
        used = restored.built.preprocessing
        console.log.info(
            "%s: input %dx%d, mean %s, std %s", restored.built.name, *used.image_size, used.mean, used.std
        )
    return restored, threads
