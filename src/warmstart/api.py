"""One function per public verb; the command line calls these and nothing else.

Each returns a record with `to_json()` (what `--json` prints) and `text()` (what people read, and a notebook shows).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from warmstart import console
from warmstart.config import io as config_io
from warmstart.config.places import absolute
from warmstart.config.schema import DataConfig
from warmstart.errors import UserError
from warmstart.results import DryRunResult, FinetuneResult
from warmstart.run import reader

if TYPE_CHECKING:
    from torch import nn

    from warmstart.analysis.check import Check
    from warmstart.analysis.evaluate import Evaluation
    from warmstart.analysis.predict import PredictionResult
    from warmstart.analysis.summary import Description, RunList

# a path or `torchvision:NAME`; or arrays, see `finetune`
Model: TypeAlias = "str | os.PathLike[str] | nn.Module"
Data = str | os.PathLike[str] | tuple[Any, Any] | Mapping[str, Any]

_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")


def _keep(module: object, run: str | None, image_size: Any) -> str:
    """The name that stands for a Python object in this process; see `models.objects`."""
    from warmstart.inference.reference import keep_module

    size = config_io.validate_section(DataConfig, {"image_size": image_size}).image_size
    return keep_module(module, run, size)


def _place(data: Data) -> str:
    """A path as it is; arrays are kept for this process under a name that stands for them."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    from warmstart.data.memory import keep

    return keep(data)


def _settings(model: Model | None, data: Data | None, settings: dict[str, Any]) -> dict[str, Any]:
    """`model` may be a file, a run, or a zoo's name: told apart by whether something lies at that path."""
    given = dict(settings)
    if data is not None:
        given["data"] = _place(data)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if model is not None and not isinstance(model, str):
        given["model"] = _keep(model, None, settings.get("image_size"))
    elif model is not None:
        if settings.get("weights") is not None and Path(model).exists():
            raise UserError(
                f"{model} and weights={settings['weights']} both name weights",
                "one file or run to start from",
            )
        path = Path(model.rpartition("@")[0] or model)
        is_path = Path(model).exists() or path.exists() or "/" in model or path.suffix in _WEIGHT_SUFFIXES
        given["weights" if is_path else "model"] = model
    return given


def finetune(
    model: Model | None = None,
    data: Data | None = None,
    *,
    preset: str | None = None,
    config: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Train a better model from `model` (file of weights, run, zoo name, or an nn.Module) on `data`.

    Of an nn.Module a copy is trained, from its own weights unless `weights` names others.
    `data` is a path, `torchvision:NAME`, or arrays: (images, labels), or a dict of such pairs by split, with
    uint8 images (N, H, W[, C]) and labels as numbers, names, or 0 and 1 (N, K).
    `settings` are the schema's leaves by flag name (`lr=5e-4`, `batch_size=64`, `freeze="backbone"`).

    Raises:
        UserError: every problem of the settings at once; bad data or weights; an interruption.
    """
    console.setup()
    loaded = config_io.load(_settings(model, data, settings), config, preset)
    from warmstart.engine import distributed, train

    with distributed.join() as world:
        if dry_run:
            return world.on_main(lambda: _dry_run(loaded))
        run = train.finetune(loaded, world)
        return world.on_main(lambda: _finish(run, loaded.config.train.device))


def _dry_run(loaded: config_io.Loaded) -> DryRunResult:
    from warmstart.engine import train

    prepared, measured = train.dry_run(loaded)
    plan = train.plan_record(prepared.job)["rows"]
    cost = {"seconds": train.expected_seconds(prepared.job, measured), **measured.to_json()}
    return DryRunResult({"plan": plan, "cost": cost, "resolved": prepared.resolved})


def resume(
    run: str,
    *,
    device: str | None = None,
    workers: int | None = None,
    data: Data | None = None,
    module: nn.Module | None = None,
) -> FinetuneResult:
    """Finish exactly the run that was started, from its last intact checkpoint.

    `data` are the arrays of a run whose data were arrays, `module` is an object like that of a run whose model
    was one; other runs find theirs themselves.

    Raises:
        UserError: nothing to resume, no intact checkpoint, or changed data.
    """
    console.setup()
    from warmstart.engine import distributed, train

    if workers is not None:
        config_io.validate_section(DataConfig, {"workers": workers})
    if data is not None:
        _check_same(run, _place(data), reader.open_run(run).resolved["data"]["path"])
    if module is not None:
        _check_same(run, _keep(module, run, None), reader.open_run(run).resolved["model"]["name"])
    with distributed.join() as world:
        folder = train.resume(run, {"device": device, "workers": workers}, world)
        used = device or reader.open_run(folder).config["train"]["device"]
        return world.on_main(lambda: _finish(folder, used))


def _check_same(run: str, given: str, recorded: str) -> None:
    if recorded not in (given, absolute(given)):
        raise UserError(f"{run} was started on {recorded}, not on {given}", "the same one, or none")


def _finish(run: Path, device: str) -> FinetuneResult:
    """Measure what the run changed and draw its curves; both only read what training wrote."""
    from warmstart.analysis.curves import draw_curves
    from warmstart.analysis.gain import measure_gains
    from warmstart.inference.device import resolve_device

    gains, result = measure_gains(run, resolve_device(device), workers=0)
    draw_curves(run)
    return FinetuneResult(str(run), result.metrics, result.num_samples, result.split, gains)


def evaluate(
    model: str,
    data: Data | None = None,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output_dir: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a run, RUN@step or a file of weights on labelled images.

    `settings`: workers, label_columns (with `data`), module (an object like that of the run, where it was one),
    and model_name, image_size, mean, std, crop_pct for files that do not say them.
    """
    console.setup()
    from warmstart.analysis.evaluate import evaluate as run_evaluation

    columns = settings.pop("label_columns", None)
    if data is None and columns is not None:
        raise UserError(
            "--label-columns without --data", "a table that has these columns", "name it with --data"
        )
    labelled = None if data is None else _labelled(data, columns)
    restored, workers = _restore(model, device, settings)
    return run_evaluation(restored, labelled, split, batch_size, workers, output_dir).draw()


def predict(
    model: str,
    images: list[str],
    *,
    top_k: int = 5,
    output: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> PredictionResult:
    """Classes of image files and folders; `output` is a CSV or JSON file to write."""
    console.setup()
    from warmstart.analysis.predict import check_output, write_predictions_file
    from warmstart.analysis.predict import predict as run_prediction

    if top_k < 1:
        raise UserError(f"--top-k {top_k}", "1 or more")
    if output is not None:
        check_output(Path(output))
    restored, workers = _restore(model, device, settings)
    result = run_prediction(restored, images, top_k, batch_size, workers)
    if output is not None:
        write_predictions_file(result, Path(output))
    return result


def check(model: str, data: Data, *, batch_size: int = 32, device: str = "auto", **settings: Any) -> Check:
    """Load a checkpoint and run three batches of the data through it: does it fit, and what does it cost?"""
    console.setup()
    from warmstart.analysis.check import check as run_check

    labelled = _labelled(data, settings.pop("label_columns", None))
    restored, workers = _restore(model, device, settings)
    return run_check(restored, labelled, batch_size, workers)


def _labelled(data: Data, label_columns: str | None) -> DataConfig:
    """Data to measure on; label columns that were not given are left to the run."""
    given = {} if label_columns is None else {"label_columns": label_columns}
    return config_io.validate_section(DataConfig, {"path": _place(data), **given})


def _restore(model: str, device: str, settings: dict[str, Any]) -> tuple[Any, int]:
    """The model on its device, and the decoding threads."""
    from warmstart.inference.device import resolve_device
    from warmstart.inference.restore import restore

    given = {key: value for key, value in settings.items() if value is not None}
    module, name = given.pop("module", None), given.pop("model_name", None)
    if module is not None:
        name = _keep(module, model, given.get("image_size"))
    workers = given.pop("workers", 0)
    unknown = set(given) - {"image_size", "mean", "std", "crop_pct"}
    if unknown:
        raise UserError(
            f"unknown setting {sorted(unknown)[0]!r}",
            "workers, module, model_name, image_size, mean, std, crop_pct",
        )
    data = config_io.validate_section(DataConfig, {**given, "workers": workers})
    overrides = {key: getattr(data, key) for key in given}
    threads = 0 if data.workers == "auto" else int(data.workers)
    restored = restore(model, resolve_device(device), name, overrides)
    for note in restored.built.notes:
        console.log.info("weights: %s", note)
    if restored.reference.run is None:
        used = restored.built.preprocessing
        console.log.info(
            "%s: input %dx%d, mean %s, std %s", restored.built.name, *used.image_size, used.mean, used.std
        )
    return restored, threads


def runs(folder: str = "runs") -> RunList:
    """One row per run directory below `folder`."""
    from warmstart.analysis.summary import list_runs

    return list_runs(folder)


def show(run: str) -> Description:
    """What a run directory says: state, start and best, plan, where things lie."""
    from warmstart.analysis.summary import describe_run

    return describe_run(run)


def init(
    data: str,
    weights: str | None = None,
    output: str = "warmstart.yaml",
    label_columns: str | None = None,
) -> str:
    """Write a commented YAML to start from, with what the data and the weights tell filled in."""
    console.setup()
    from warmstart.analysis.start import starting_settings
    from warmstart.run.writer import write_text

    target = Path(output)
    if target.exists():
        raise UserError(
            f"{target} exists already", "a new file", "choose another --output, or remove it first"
        )
    write_text(target, config_io.template(starting_settings(_labelled(data, label_columns), weights)))
    return str(target)


def as_json(result: Any) -> Any:
    """What `--json` prints for any verb's result."""
    if hasattr(result, "to_json"):
        return result.to_json()
    return asdict(result) if hasattr(result, "__dataclass_fields__") else result
