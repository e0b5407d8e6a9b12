"""Settings to start from, as far as the data and the weights tell (for `init`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.config import rules
from warmstart.config.places import expanded, is_path
from warmstart.config.schema import DataConfig, ModelConfig
from warmstart.data.sources import open_source
from warmstart.errors import UserError
from warmstart.inference.reference import resolve_weights
from warmstart.models.naming import resolve_name
from warmstart.models.weights import read_weights


def starting_settings(data: DataConfig, weights: str | None) -> dict[str, Any]:
    """Values by `section.leaf`.

    Raises:
        UserError: data or weights that cannot be read.
    """
    assert data.path is not None
    if is_path(data.path) and not Path(expanded(data.path)).exists():
        raise rules.missing_path("DATA", data.path)
    # A layout that cannot be read is better refused now than at the first run.
    source = open_source(data.path, label_columns=data.label_columns)
    values: dict[str, Any] = {"data.path": data.path}
    if data.label_columns:
        values["data.label_columns"] = list(data.label_columns)
    if weights is None and source.ignore is not None:
        # The only architecture of masks that needs no other package; no weights of it are published.
        values |= {"model.name": "builtin:microsegformer", "model.weights": "none"}
    elif weights is None:
        # No checkpoint: a small backbone that trains on any machine is the least surprising start.
        values["model.name"] = "timm:mobilenetv3_small_100"
    else:
        values["model.weights"] = weights
        reference = resolve_weights(weights)
        file = read_weights(reference.file or weights)
        if file.arch is None:
            raise UserError(
                f"{weights} does not say which model it belongs to",
                "weights of a model that is known",
                "write model: {name: timm:NAME, weights: FILE} into the YAML by hand",
            )
        values["model.name"] = resolve_name(ModelConfig(), file)
    values |= {"optim.lr": 1e-3, "train.epochs": 10, "train.seed": 0}
    return values
