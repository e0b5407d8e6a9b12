"""What a run's checkpoint or a file of another program says of itself: epoch, metrics, optimizer, settings, parents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference, resolve_weights
from warmstart.models.pickled import OPTIMIZERS, SCHEDULERS, content_of, first_epoch, first_part
from warmstart.models.unwrap import averaged_in
from warmstart.models.weights import WeightsFile, read_weights
from warmstart.run import layout
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run, split_reference

_CONFIGS = ("config", "args", "hyper_parameters", "train_config", "model_config", "settings")
_NOT_METRICS = ("epoch", "step", "global_step", "version", "seed", "best_epoch", "iteration", "iter", "lr")
_MOST_PARENTS = 20


@dataclass(frozen=True)
class Contents:
    """`epochs` are those that are done, counted from 1; None of anything: nobody has said it."""

    reference: WeightsReference
    file: WeightsFile
    raw: Mapping[str, Tensor]  # as training goes on with them, where the weights are an average
    averaged: Mapping[str, Tensor]
    epochs: float | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    licence: str | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of the file, with the adapters that lie beside the weights."""
        return {**self.file.state, **self.file.adapters}


def read_contents(reference: str) -> Contents:
    """Of a run (its best, or RUN@step) or a file.

    Raises:
        UserError: there is no such thing, or it holds no weights.
    """
    found = resolve_weights(reference)
    if found.file is None:
        raise UserError(f"{reference}: no weights", "a run directory, RUN@step, or a file of weights")
    file = read_weights(found.file)
    return _of_file(found, file) if found.run is None else _of_run(found, file, found.run)


def _of_run(found: WeightsReference, file: WeightsFile, run: Run) -> Contents:
    assert found.step is not None
    folder, resolved = run.checkpoint(found.step), run.resolved
    per_epoch = resolved.get("pace", {}).get("steps_per_epoch")
    rows = [row for row in run.evals.rows if row["step"] == found.step and row["split"] != "train"]
    metrics = {
        f"{row['split'] if row.get('task') is None else '{split} of {task}'.format(**row)} {name}": float(
            value
        )
        for row in rows
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in ("step", "epoch", "num_samples")
    }
    config = {
        f"{section}.{leaf}": value
        for section, body in run.config.items()
        if isinstance(body, dict)
        for leaf, value in body.items()
    }
    given = {path: config.get(path) for path in resolved.get("origins", {})}
    raw, optimizer = _state(folder)
    optim = {path.partition(".")[2]: value for path, value in config.items() if path.startswith("optim.")}
    scheduler = {name: optim.get(name) for name in ("scheduler", "lr", "min_lr", "warmup")}
    return Contents(
        found,
        file,
        raw=raw or file.state,
        averaged=file.state if raw else {},
        epochs=found.step / per_epoch if per_epoch else None,
        step=found.step,
        metrics=metrics,
        optimizer={"optimizer": optim.get("optimizer"), **optimizer},
        scheduler={**scheduler, "lr now": _rate(run, found.step)},
        config=given,
        lineage=lineage_of(run),
        licence=resolved["model"].get("licence"),
    )


def _state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The raw weights beside an average, and what the optimizer keeps; empty where the state is not kept."""
    file = folder / layout.STATE_TENSORS
    if not file.is_file():
        return {}, {}
    with safe_open(file, framework="pt", device="cpu") as opened:
        names = list(opened.keys())
        raw = {
            name.removeprefix("raw."): opened.get_tensor(name) for name in names if name.startswith("raw.")
        }
    kept: dict[str, int] = {}
    for name in names:
        if name.startswith("optimizer."):
            kept[name.split(".")[1]] = kept.get(name.split(".")[1], 0) + 1
    record = json.loads((folder / layout.STATE).read_text(encoding="utf-8"))
    return raw, {"groups": len(record["optimizer"].get("groups", {})), "keeps": kept}


def _rate(run: Run, step: int) -> float | None:
    """The learning rate of the last row up to a step."""
    rows = [row for row in run.metrics.rows if row["step"] <= step and row.get("lr") is not None]
    return rows[-1]["lr"] if rows else None


def lineage_of(run: Run) -> tuple[str, ...]:
    """Where the weights came from: the parent, its parent, ..., and the file or zoo that the first one was made of."""
    found: list[str] = []
    while len(found) < _MOST_PARENTS:
        parent, source = run.resolved["parent"], run.resolved["model"]["source"]
        if parent is None:
            found.append(str(source.get("path") or source["kind"]))
            break
        found.append(reference_of(parent))
        place = Path(split_reference(str(parent["run"]))[0])
        if not layout.is_run(place):
            break
        run = Run(place)
    return tuple(found)


def _of_file(found: WeightsReference, file: WeightsFile) -> Contents:
    content = content_of(file.path)
    epoch: Any = content.get("epoch")
    is_counted = isinstance(epoch, (int, np.integer)) and not isinstance(epoch, bool)
    step = next((content[key] for key in ("global_step", "step") if isinstance(content.get(key), int)), None)
    settings = {key: _plain(content[key]) for key in _CONFIGS if content.get(key)}
    return Contents(
        found,
        file,
        raw=file.state,
        averaged=averaged_in(content),
        epochs=float(epoch) + 1 - first_epoch(content) if is_counted else None,
        step=step,
        metrics=_metrics(content),
        optimizer=_optimizer(first_part(content, OPTIMIZERS)),
        scheduler={k: v for k, v in (first_part(content, SCHEDULERS) or {}).items() if _is_short(v)},
        config={key: value for key, value in settings.items() if value},
        lineage=(str(file.base.path),) if file.base is not None and file.base.path else (),
    )


def _metrics(content: Mapping[Any, Any]) -> dict[str, float]:
    """Numbers at the top, and those under `metrics`."""
    below = content.get("metrics") or content.get("val_metrics")
    places = [content, *([below] if isinstance(below, Mapping) else [])]
    return {
        str(key): float(value)
        for place in places
        for key, value in place.items()
        if isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and key not in _NOT_METRICS
    }


def _optimizer(state: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Of torch's form: groups with their rates, and how many parameters have which state."""
    if state is None or not {"state", "param_groups"} <= set(state):
        return {}
    kept: dict[str, int] = {}
    for row in state["state"].values():
        for key in row if isinstance(row, Mapping) else ():
            kept[str(key)] = kept.get(str(key), 0) + 1
    groups = [group for group in state["param_groups"] if isinstance(group, Mapping)]
    rates = [group["lr"] for group in groups if isinstance(group.get("lr"), (int, float))]
    return {"groups": len(groups), "lr": rates, "keeps": kept}


def _plain(value: Any) -> Any:
    """Settings as plain values, to any depth; what is none is left out."""
    if hasattr(value, "__dict__") and not isinstance(value, Mapping):  # argparse.Namespace
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): inner for key, item in value.items() if (inner := _plain(item)) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value] if len(value) <= 20 else None
    return value if isinstance(value, (str, int, float, bool)) else None


def _is_short(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or (
        isinstance(value, (list, tuple))
        and len(value) <= 4
        and all(isinstance(v, (int, float)) for v in value)
    )
