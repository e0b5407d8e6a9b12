"""One function per public verb; the command line calls these and nothing else.

Each returns a record with `to_json()` (what `--json` prints) and `text()` (what people read).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.config import io as config_io
from warmstart.config.schema import DataConfig
from warmstart.errors import UserError
from warmstart.run import reader

if TYPE_CHECKING:
    from warmstart.analysis.check import Check
    from warmstart.analysis.evaluate import Evaluation
    from warmstart.analysis.gain import Gain
    from warmstart.analysis.predict import PredictionResult


_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run: `metrics` are of its best checkpoint on test (else val)."""

    run: str
    metrics: dict[str, float]
    num_samples: int
    split: str
    gains: list[Gain]

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "metrics": self.metrics,
            "num_samples": self.num_samples,
            "split": self.split,
            "gains": [gain.to_json() for gain in self.gains],
        }

    def text(self) -> str:
        rows = [
            (gain.split, name, gain.start.get(name), gain.best.get(name))
            for gain in self.gains
            for name in ("accuracy", "f1", "loss", "ece")
        ]
        lines = [console.table("", ("split", "metric", "start", "best"), rows, left=2), ""]
        lines += [gain.text() for gain in self.gains]
        lines += ["", f"run: {self.run}", f"look: warmstart show {self.run}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class DryRunResult:
    """What a run would do and cost; nothing was written."""

    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.record

    def text(self) -> str:
        return "dry run: nothing was written"


def _settings(model: str | None, data: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """`model` may be a file, a run, or a zoo's name: told apart by whether something lies at that path."""
    given = dict(settings)
    if data is not None:
        given["data"] = data
    if model is not None:
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
    model: str | None = None,
    data: str | None = None,
    *,
    preset: str | None = None,
    config: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Train a better model from `model` (file of weights, run, or zoo name) on `data`.

    `settings` are the schema's leaves by flag name (`lr=5e-4`, `batch_size=64`, `freeze="backbone"`).

    Raises:
        UserError: every problem of the settings at once; bad data or weights; an interruption.
    """
    console.setup()
    loaded = config_io.load(_settings(model, data, settings), config, preset)
    from warmstart.engine import train

    if dry_run:
        prepared, measured = train.dry_run(loaded)
        plan = train.plan_record(prepared.job)["rows"]
        cost = {"seconds": train.expected_seconds(prepared.job, measured), **measured.to_json()}
        return DryRunResult({"plan": plan, "cost": cost, "resolved": prepared.resolved})
    return _finish(train.finetune(loaded), loaded.config.train.device)


def resume(run: str, *, device: str | None = None, workers: int | None = None) -> FinetuneResult:
    """Finish exactly the run that was started, from its last intact checkpoint.

    Raises:
        UserError: nothing to resume, no intact checkpoint, or changed data.
    """
    console.setup()
    from warmstart.engine import train

    if workers is not None:
        config_io.validate_section(DataConfig, {"workers": workers})
    folder = train.resume(run, {"device": device, "workers": workers})
    return _finish(folder, device or reader.open_run(folder).config["train"]["device"])


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
    data: str | None = None,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output_dir: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a run, RUN@step or a file of weights on labelled images.

    `settings`: workers, and model_name, image_size, mean, std, crop_pct for files that do not say them.
    """
    console.setup()
    from warmstart.analysis.evaluate import evaluate as run_evaluation

    restored, workers = _restore(model, device, settings)
    return run_evaluation(restored, data, split, batch_size, workers, output_dir)


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


def check(model: str, data: str, *, batch_size: int = 32, device: str = "auto", **settings: Any) -> Check:
    """Load a checkpoint and run three batches of the data through it: does it fit, and what does it cost?"""
    console.setup()
    from warmstart.analysis.check import check as run_check

    restored, workers = _restore(model, device, settings)
    return run_check(restored, data, batch_size, workers)


def _restore(model: str, device: str, settings: dict[str, Any]) -> tuple[Any, int]:
    """The model on its device, and the decoding threads."""
    from warmstart.inference.device import resolve_device
    from warmstart.inference.restore import restore

    given = {key: value for key, value in settings.items() if value is not None}
    name = given.pop("model_name", None)
    workers = given.pop("workers", 0)
    unknown = set(given) - {"image_size", "mean", "std", "crop_pct"}
    if unknown:
        raise UserError(
            f"unknown setting {sorted(unknown)[0]!r}", "workers, model_name, image_size, mean, std, crop_pct"
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


def runs(folder: str = "runs") -> list[dict[str, Any]]:
    """One row per run directory below `folder`."""
    from warmstart.analysis.summary import list_runs

    return list_runs(folder)


def show(run: str) -> dict[str, Any]:
    """What a run directory says: state, start and best, plan, where things lie."""
    from warmstart.analysis.summary import describe_run

    return describe_run(run)


def init(data: str, weights: str | None = None, output: str = "warmstart.yaml") -> str:
    """Write a commented YAML to start from, with what the data and the weights tell filled in."""
    console.setup()
    from warmstart.analysis.start import starting_settings
    from warmstart.run.writer import write_text

    target = Path(output)
    if target.exists():
        raise UserError(
            f"{target} exists already", "a new file", "choose another --output, or remove it first"
        )
    write_text(target, config_io.template(starting_settings(data, weights)))
    return str(target)


def as_json(result: Any) -> Any:
    """What `--json` prints for any verb's result."""
    if hasattr(result, "to_json"):
        return result.to_json()
    return asdict(result) if hasattr(result, "__dataclass_fields__") else result
