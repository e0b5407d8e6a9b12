"""The data and the model of a run. Each needs the other: classes make the head, the input size makes the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from warmstart.adapt.lora import choose_lora
from warmstart.config.distill_rules import is_onnx
from warmstart.config.places import absolute, expanded
from warmstart.config.schema import Config
from warmstart.console import log, progress
from warmstart.data.changes import written_since
from warmstart.data.dataset import Dataset, Recorded, open_dataset, split_settings
from warmstart.data.decode import check_channels
from warmstart.data.episodes import by_classes
from warmstart.data.mixture import all_classes
from warmstart.data.store_plan import StorePlan, plan_store
from warmstart.engine.opening.open_sources import (
    OpenedTask,
    OtherSource,
    Retained,
    add_sources,
    classes_of_others,
    settings_of_source,
)
from warmstart.errors import UserError, listing
from warmstart.inference.reference import WeightsReference, processor_of, resolve_weights
from warmstart.models.build import BuiltModel, build
from warmstart.models.image_text.prompts import Texts
from warmstart.models.weights import WeightsFile
from warmstart.run.reader import Run


@dataclass(frozen=True)
class Inputs:
    """`split` is by what the data were divided: seed, ratios, groups, known ids; `sources` are other data sets.

    `tasks` are there where they are several, that of --data first.
    """

    dataset: Dataset
    built: BuiltModel
    split: dict[str, Any]
    sources: tuple[OtherSource, ...] = ()
    retained: Retained | None = None
    tasks: tuple[OpenedTask, ...] = ()


def open_inputs(
    config: Config,
    reference: WeightsReference,
    run: Path,
    resolved: dict[str, Any] | None,
    device: torch.device,
) -> Inputs:
    """Open the data, and build the model for their classes on `device`; `run` is the run's directory.

    Raises:
        UserError: whatever the data or the weights refuse, or data that have changed since `resolved`.
    """
    models: list[BuiltModel] = []
    others = classes_of_others(config)

    def store(classes: tuple[str, ...]) -> StorePlan:
        if not models:
            everything = all_classes(classes, others, config.data.mix_classes)
            everything = config.meta.places if config.meta.is_on else everything
            models.append(build_model(config, everything, reference, device, resolved))
        return plan_store(config.data, models[0].preprocessing)

    teachers = _teaching_runs(config)
    parent = reference.run or next(iter(teachers), None)
    known = _known(parent, config.data.path)
    dataset, split = open_divided(config, known, Run(run).splits, resolved, store)
    for teacher in teachers:
        if (
            parent is not None
            and teacher.path != parent.path
            and (taught := _known(teacher, config.data.path))
        ):
            _warn_of_leaks(dataset, taught)
    (built,) = models
    check_channels(dataset.facts.num_channels, built.preprocessing.num_channels)

    def open_other(number: int, path: str) -> OtherSource:
        known = None if resolved is None else {"data": resolved["sources"][number]}
        settings = settings_of_source(config, path)
        splits = Run(run).source_splits(number)
        found, division = open_divided(settings, _known(reference.run, path), splits, known, store)
        check_channels(found.facts.num_channels, built.preprocessing.num_channels)
        return OtherSource(path, found, division)

    dataset, sources, retained = add_sources(config, dataset, built.classes, open_other)
    return Inputs(dataset, built, split, sources, retained)


def _teaching_runs(config: Config) -> list[Run]:
    """The teachers that are runs of ours: a student should not be measured on what they were trained on."""
    names = (name for name in config.distill.teacher if not (is_onnx(name) or name.startswith("hf:")))
    return [run for name in names if (run := resolve_weights(expanded(name)).run) is not None]


@dataclass(frozen=True)
class Known:
    """How a parent had divided a data set: `data` as in resolved.json, `splits` by id."""

    run: Path
    data: dict[str, Any]
    splits: dict[str, str]


def _known(parent: Run | None, path: str | None = None) -> Known | None:
    """What the parent knows of the data set at `path`; where it had another, of its own: images may be the same."""
    if parent is None:
        return None
    found = None if path is None else known_by(parent, path)
    return found or Known(parent.path, parent.resolved["data"], parent.splits)


def known_by(parent: Run, path: str) -> Known | None:
    """How a run had divided the data set at `path`: its own, or one beside it."""
    if parent.resolved["data"]["path"] == absolute(path):
        return Known(parent.path, parent.resolved["data"], parent.splits)
    for number, source in enumerate(parent.resolved.get("sources", ())):
        if source["path"] == absolute(path):
            return Known(parent.path, source, parent.source_splits(number))
    return None


def open_divided(
    config: Config,
    parent: Known | None,
    divided: dict[str, str],
    resolved: dict[str, Any] | None,
    store: Callable[[tuple[str, ...]], StorePlan],
) -> tuple[Dataset, dict[str, Any]]:
    """The data, and by what they are split: seed, ratios, groups, and how many ids were known.

    A run that goes on from a run on the same data, or on what has become of them, leaves every image in the
    split it was in: else it would be tested on images that its parent was trained on. `divided` are the splits
    that the run itself recorded, where it was started before.
    """
    if resolved is not None:
        split = resolved["data"]["split"]
        # A resumed run has its own splits; other processes of a run that starts take the parent's, as the first did.
        known = divided or (parent.splits if parent is not None and split.get("known") else {})
        return _open(config, split, resolved, known, store), split
    own: dict[str, Any] = {"seed": config.train.seed}
    own |= {name: getattr(config.data, name) for name in ("train_ratio", "val_ratio", "group")}
    dataset = _open(config, own, None, {}, store)
    if parent is None:
        return dataset, own
    split = _kept_split(config, own, parent, dataset)
    if split != own:
        facts = dataset.facts
        known_facts = {"data": {"quarantined": facts.quarantined, "fingerprint": facts.fingerprint}}
        known = parent.splits if split.get("known") else {}
        dataset = _open(config, split, known_facts, known, store)
    _warn_of_leaks(dataset, parent)
    # With the images of earlier rounds that are not here, for rounds to come.
    return replace(dataset, divided={**parent.splits, **dataset.divided}), split


def _kept_split(config: Config, own: dict[str, Any], parent: Known, dataset: Dataset) -> dict[str, Any]:
    """By what the data are to be split: as the parent's, as `own` besides the ids that it knows, or as `own`."""
    recorded = parent.data
    num = len(dataset.divided)
    # A run of episodes has divided classes: images of all of them are wanted in every split here.
    is_by_class = Run(parent.run).resolved.get("episodes") is not None
    shared = 0 if is_by_class else sum(name in parent.splits for name in dataset.divided)
    known = {"known": shared} if shared else {}
    if recorded["fingerprint"] == dataset.facts.fingerprint:
        inherited = {name: recorded["split"].get(name) for name in own}
        if inherited != own:
            log.warning(
                "the splits are those of %s (seed, ratios, group), on whose training images the weights were trained",
                recorded["path"],
            )
        # Where the parent's seed alone does not give its splits, its list of ids does.
        return inherited | (known if recorded["split"].get("known") else {})
    is_same_place = absolute(config.data.path or "") == recorded["path"]
    if not shared or shared < num * (0.1 if is_same_place else 0.5):
        return own
    log.warning(
        "%d of %d images are known to %s by their ids and keep the splits they had there; %d are new and are divided",
        shared,
        num,
        parent.run,
        num - shared,
    )
    return own | {"group": own["group"] or recorded["split"].get("group")} | known


def _warn_of_leaks(dataset: Dataset, parent: Known) -> None:
    """Data that come divided, or hold only few known images, may still test on what the weights were trained on."""
    for split in ("val", "test"):
        ids = dataset.splits[split].ids if split in dataset.splits else ()
        num = sum(parent.splits.get(name) == "train" for name in ids)
        if num:
            log.warning(
                "%d of %d %s images have the ids of training images of %s: the scores may be too good",
                num,
                len(ids),
                split,
                parent.run,
            )


def _open(
    config: Config,
    split: dict[str, Any],
    resolved: dict[str, Any] | None,
    known_splits: dict[str, str],
    store: Callable[[tuple[str, ...]], StorePlan],
) -> Dataset:
    """Read the data with these splits; what a run has `resolved` spares the scan."""
    known = None
    if resolved is not None:
        known = tuple((name, reason) for name, reason in resolved["data"]["quarantined"])
    settings = config.data.model_copy(update=split_settings(split))
    if config.meta.is_on:  # classes are divided, not images
        settings = settings.model_copy(update={"train_ratio": 1.0, "val_ratio": 0.0, "group": None})
        known_splits = {}
    with progress("reading the images", 1) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        recorded = Recorded(known, known_splits)
        dataset = open_dataset(
            settings, split["seed"], recorded, report, store=store, captions=config.text.captions
        )
    if config.meta.is_on:
        dataset = by_classes(dataset, config, split["seed"])
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
    if resolved is not None and "created" in resolved:
        _warn_of_rewritten(dataset, datetime.fromisoformat(resolved["created"]).timestamp())
    return dataset


def _warn_of_rewritten(dataset: Dataset, created: float) -> None:
    """Names and sizes are what they were; the content of a file may be another one all the same."""
    names = written_since(dataset.splits.values(), created + 1)  # the second that it was created in
    if names:
        log.warning(
            "files of the data were written after the run was started (%d: %s): if they hold something else than then, "
            "this is another run than the one that was started",
            len(names),
            listing(names, 3),
        )


def build_model(
    config: Config,
    classes: tuple[str, ...],
    reference: WeightsReference,
    device: torch.device,
    resolved: dict[str, Any] | None = None,
    file: WeightsFile | None = None,
) -> BuiltModel:
    """The model of a run on `device`, with the adapters that its settings ask for, or that it had `resolved`.

    `file` are its weights, where they were read before.
    """
    data = config.data
    lora = choose_lora(config, None if resolved is None else resolved["model"].get("lora"))
    overrides = {"mean": data.mean, "std": data.std, "image_size": data.image_size, "crop_pct": data.crop_pct}
    settings = config.model.model_copy(update={"weights": reference.file or config.model.weights})
    texts = Texts(config.text, processor_of(reference.run))
    given = settings if file is None else (settings, file)
    built = build(given, overrides, classes, config.train.seed, config.task, lora, texts)
    built.move_to(device)
    return built
