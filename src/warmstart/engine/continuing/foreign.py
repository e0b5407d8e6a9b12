"""What checkpoints of other programs hold beside weights: epoch, optimizer state, settings. Nothing in them is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from warmstart.config.schema import leaves
from warmstart.config.yaml_aliases import translate_yaml
from warmstart.engine.continuing.foreign_ocec import ocec_settings, plateau_factor
from warmstart.engine.job import Job
from warmstart.engine.optimizer import OptimizerState
from warmstart.engine.schedule import Plateau
from warmstart.engine.state import TrainState
from warmstart.errors import listing
from warmstart.models.fitting import fit_names
from warmstart.models.pickled import OPTIMIZERS, SCHEDULERS, content_of, first_epoch, first_part
from warmstart.models.weights import WeightsFile, read_weights
from warmstart.models.zoo import outline

_BUFFER = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")
# What torch's optimizers keep for a parameter; our own of the same name keep the same.
_STATE_KEYS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another program. `epochs_done` and `rate` (in force at its end) are None where it says none."""

    file: WeightsFile
    optimizer: Mapping[str, Any] | None
    epochs_done: int | None
    rate: float | None
    settings: dict[str, Any]  # by path, as far as its config uses names that are known here
    notes: tuple[str, ...]
    plateau_factor: float = 1.0  # of the rate, where its scheduler is one that waits for a lower loss


def read_foreign(path: str) -> Foreign:
    """UserError: the file cannot be read, or holds no weights."""
    file = read_weights(path)
    content = content_of(file.path)
    optimizer = first_part(content, OPTIMIZERS)
    rates = (first_part(content, SCHEDULERS) or {}).get("_last_lr")
    epoch: Any = content.get("epoch")
    notes = []
    is_counted, first = isinstance(epoch, (int, np.integer)), first_epoch(content)
    if is_counted:
        notes.append(f"its epoch {epoch} is counted from {first}: {epoch + 1 - first} epochs are done")
    if "best_f_score" in content:
        notes.append(
            f"its best_f_score {float(content['best_f_score']):.6f} is no bar: such files hold the best before their "
            "own epoch, and it was measured elsewhere"
        )
    if "best_f1" in content:
        notes.append(f"its best_f1 {float(content['best_f1']):.4f} is no bar: it was measured elsewhere")
    settings = _settings(content.get("config")) | ocec_settings(content)
    if settings:
        notes.append(f"its config gives {listing(settings)}; other keys of it are not taken over")
    factor = plateau_factor(content, settings)
    if factor < 1:
        notes.append(
            f"its scheduler waits for a lower loss and has made {factor:g} of the rate; patience counts anew"
        )
    return Foreign(
        file,
        optimizer if optimizer is not None and {"state", "param_groups"} <= set(optimizer) else None,
        int(epoch) + 1 - first if is_counted else None,
        float(rates[0]) if isinstance(rates, (list, tuple)) and rates else None,
        settings,
        tuple(notes),
        factor,
    )


def first_state(foreign: Foreign | None, step: int) -> TrainState:
    """Where a run begins at `step`; of a foreign checkpoint (None: there is none to go on from) with what its
    scheduler has made of the rate."""
    return TrainState(step=step, plateau=Plateau(1.0 if foreign is None else foreign.plateau_factor))


def _settings(config: Any) -> dict[str, Any]:
    """Plain values under names that are known here; where the run was, and was written, is no setting of a child."""
    if not isinstance(config, Mapping):
        return {}
    rest, values, _ = translate_yaml(config, "the checkpoint", [])
    for section, body in rest.items():
        values |= (
            {f"{section}.{name}": value for name, value in body.items()} if isinstance(body, Mapping) else {}
        )
    known = {leaf.path for leaf in leaves() if leaf.section in ("optim", "train", "task")} | {"model.dropout"}
    known.remove("train.device")
    return {
        path: v
        for path, v in values.items()
        if path in known and isinstance(v, (int, float, str, type(None)))
    }


def optimizer_state(foreign: Foreign, job: Job) -> tuple[OptimizerState | None, str]:
    """The file's moments by parameter name, or None; and how far it could be kept, or why not.

    torch numbers parameters in the order of the model that it was given, which is that of the file's weights.
    """
    if foreign.optimizer is None:
        return None, "the file holds no optimizer state"
    keys = _STATE_KEYS.get(job.config.optim.optimizer.lower())
    if keys is None:
        return (
            None,
            f"--optimizer {job.config.optim.optimizer} keeps a state of its own kind (adamw and sgd are torch's)",
        )
    if foreign.file.classes not in (None, job.built.classes):
        return None, "the file's classes stand in another order"
    groups, state = foreign.optimizer["param_groups"], foreign.optimizer["state"]
    if len(groups) > 1:
        return None, f"its {len(groups)} groups of parameters do not tell which number is which parameter"
    shapes = {name: parameter.shape for name, parameter in job.built.module.named_parameters()}
    known = outline(job.built.name)
    fitted = fit_names(foreign.file, known, job.built.name)
    beside = [key for key in fitted.state if key.startswith(known.training_only) and not _BUFFER.search(key)]
    names = [key for key in fitted.state if key in shapes or key in beside]
    numbers = list(groups[0]["params"])
    if len(names) != len(numbers):
        return None, f"it numbers {len(numbers)} parameters, and the file's weights have {len(names)}"
    tensors: dict[str, torch.Tensor] = {}
    kept = 0
    for name, number in zip(names, numbers, strict=True):
        row = state.get(number, {})
        if name not in shapes or not all(row.get(key) is not None for key in keys):
            continue
        for key in keys:
            value = torch.as_tensor(row[key], dtype=torch.float32)
            if key != "step" and value.shape != shapes[name]:
                return None, f"number {number} is {tuple(value.shape)}, and {name} is {tuple(shapes[name])}"
            tensors[f"{key}.{name}"] = value
        kept += 1
    if not kept:
        return None, f"it holds no {' and '.join(keys)} of {job.config.optim.optimizer}"
    return (
        tensors,
        {"parameters": {}, "groups": {}},
    ), f"moments of {kept} of {len(names) - len(beside)} parameters, by their order"
