"""The data and the model of a run. Each needs the other: classes make the head, the input size makes the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from warmstart.config.schema import Config
from warmstart.console import log, progress
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.decode import check_channels
from warmstart.data.store import StorePlan, plan_store
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference
from warmstart.models.build import BuiltModel, build


@dataclass(frozen=True)
class Inputs:
    """`split` is by what the data were divided: seed, ratios, groups."""

    dataset: Dataset
    built: BuiltModel
    split: dict[str, Any]


def open_inputs(
    config: Config, reference: WeightsReference, resolved: dict[str, Any] | None, device: torch.device
) -> Inputs:
    """Open the data, and build the model for their classes on `device`.

    Raises:
        UserError: whatever the data or the weights refuse, or data that have changed since `resolved`.
    """
    models: list[BuiltModel] = []

    def store(classes: tuple[str, ...]) -> StorePlan:
        if not models:
            models.append(_build(config, classes, reference, device))
        return plan_store(config.data, models[0].preprocessing)

    dataset, split = _open_dataset(config, reference, resolved, store)
    (built,) = models
    check_channels(dataset.facts.num_channels, built.preprocessing.num_channels)
    return Inputs(dataset, built, split)


def _open_dataset(
    config: Config,
    reference: WeightsReference,
    resolved: dict[str, Any] | None,
    store: Callable[[tuple[str, ...]], StorePlan],
) -> tuple[Dataset, dict[str, Any]]:
    """The data, and the seed, ratios and groups by which they are split.

    A run that goes on from a run on the same data keeps its parent's splits: with splits of its own, it
    would be tested on images that its parent was trained on.
    """
    split: dict[str, Any] = {"seed": config.train.seed}
    split |= {name: getattr(config.data, name) for name in ("train_ratio", "val_ratio", "group")}
    if resolved is not None:
        return _open(config, resolved["data"]["split"], resolved, store), resolved["data"]["split"]
    dataset = _open(config, split, None, store)
    parent = reference.run.resolved["data"] if reference.run is not None else None
    inherited = {"group": None, **parent["split"]} if parent is not None else split
    if parent is not None and parent["fingerprint"] == dataset.facts.fingerprint and inherited != split:
        log.warning(
            "the splits are those of %s (seed, ratios, group), on whose training images the weights were trained",
            parent["path"],
        )
        known = {"data": {"quarantined": dataset.facts.quarantined, "fingerprint": parent["fingerprint"]}}
        return _open(config, inherited, known, store), inherited
    return dataset, split


def _open(
    config: Config,
    split: dict[str, Any],
    resolved: dict[str, Any] | None,
    store: Callable[[tuple[str, ...]], StorePlan],
) -> Dataset:
    """Read the data with these splits; what a run has `resolved` spares the scan."""
    known = None
    if resolved is not None:
        known = tuple((name, reason) for name, reason in resolved["data"]["quarantined"])
    settings = config.data.model_copy(update={name: value for name, value in split.items() if name != "seed"})
    with progress("reading the images", 1) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        dataset = open_dataset(settings, split["seed"], known, report, store=store)
    facts, known_facts = dataset.facts, resolved["data"] if resolved is not None else None
    if known_facts is not None and (
        facts.fingerprint != known_facts["fingerprint"]
        or facts.counts != known_facts.get("counts", facts.counts)  # a column of groups may have changed
    ):
        raise UserError(
            f"the data in {config.data.path} have changed since the run was started",
            "the same files: a resumed run is the run that was started",
            "restore the data, or start a new run from this one's weights with `warmstart finetune`",
        )
    return dataset


def _build(
    config: Config, classes: tuple[str, ...], reference: WeightsReference, device: torch.device
) -> BuiltModel:
    data = config.data
    overrides = {"mean": data.mean, "std": data.std, "image_size": data.image_size, "crop_pct": data.crop_pct}
    settings = config.model.model_copy(update={"weights": reference.file or config.model.weights})
    built = build(settings, overrides, classes, config.train.seed)
    built.move_to(device)
    return built
