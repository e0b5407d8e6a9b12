"""What a checkpoint of document 001's program says of its training, in the names of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.models.pickled import is_ocec_file, part

# Its train_config -> path here. What it names otherwise (its data, its folder, its batches) belongs to that machine.
_NAMES = {
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "epochs": "train.epochs",
    "seed": "train.seed",
    "dropout": "model.dropout",
}
# What that program does without asking: AdamW, no clipping, and the rate halved after the third validation in a row
# without a lower loss.
_FIXED = {
    "optim.optimizer": "adamw",
    "optim.scheduler": "plateau",
    "optim.clip": None,
    "train.select_by": "f1_positive",
}
_FACTOR, _PATIENCE = 0.5, 2


def ocec_settings(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings by path, {} for files of other programs."""
    if not is_ocec_file(content):
        return {}
    stated = {**part(content, "model_config"), **part(content, "train_config")}
    scheduler = part(content, "scheduler_state")
    found = {path: stated[name] for name, path in _NAMES.items() if _is_number(stated.get(name))}
    own = part(stated, "settings")  # of files that were written here
    found |= own or _FIXED | {
        "optim.scheduler_gamma": _number(scheduler, "factor", _FACTOR),
        "optim.scheduler_patience": int(_number(scheduler, "patience", _PATIENCE)),
    }
    if _number(stated, "warmup_epochs", 0):
        found["optim.warmup"] = f"{int(stated['warmup_epochs'])}epochs"
    if isinstance(stated.get("class_weights", 0), (str, type(None))):
        found["task.class_weights"] = stated["class_weights"]
    elif "margin_method" not in stated:  # BCE with pos_weight, the classes' ratio; the fork weighs otherwise
        found["task.class_weights"] = "balanced"
    if content.get("amp_enabled") is True:
        found["train.precision"] = "auto"
    return found


def plateau_factor(content: Mapping[Any, Any], settings: Mapping[str, Any]) -> float:
    """What its scheduler has made of the rate; 1 where it is none that waits for a lower loss."""
    scheduler, lr = part(content, "scheduler_state"), settings.get("optim.lr")
    rates = scheduler.get("_last_lr")
    if "num_bad_epochs" not in scheduler or not lr or not isinstance(rates, (list, tuple)) or not rates:
        return 1.0
    return min(1.0, float(rates[0]) / float(lr))


def _number(values: Mapping[Any, Any], key: str, default: float) -> float:
    return values[key] if _is_number(values.get(key)) else default


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
