"""The data sets of several tasks, and the model with a head for each.

Tasks of a run that must not be forgotten (`--retain RUN`) come last: their heads are kept, and they are measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from warmstart.config.io import from_dict, validate_section
from warmstart.config.places import absolute
from warmstart.config.schema import Config, DataConfig
from warmstart.config.tasks_rules import data_of_task, first_name, task_name_of
from warmstart.config.tasks_values import UNCERTAINTY
from warmstart.data.dataset import Dataset
from warmstart.data.decode import check_channels
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.sources import open_source
from warmstart.data.store_plan import StorePlan, plan_store
from warmstart.engine.checks import check_kind
from warmstart.engine.opening.open_inputs import Inputs, build_model, known_by, open_divided
from warmstart.engine.opening.open_sources import OpenedTask, OtherSource
from warmstart.errors import UserError, listing
from warmstart.inference.reference import WeightsReference
from warmstart.models.build import BuiltModel
from warmstart.models.task_files import alone, with_name
from warmstart.models.task_heads import with_heads
from warmstart.models.weights import WeightsFile, read_weights
from warmstart.models.zoo import outline
from warmstart.run import layout
from warmstart.run.reader import Run

_LABELS, _SETS, _MASKS = "labels", "multi-label", "masks"


@dataclass(frozen=True)
class _Wanted:
    """A task to open; `source` is its number among the data sets beside --data (None: --data itself)."""

    name: str
    data: DataConfig
    trained: bool
    source: int | None


def open_tasks(
    config: Config,
    reference: WeightsReference,
    run: Path,
    resolved: dict[str, Any] | None,
    device: torch.device,
) -> Inputs:
    """As `open_inputs`, for several tasks; the first mask task, else the first task, makes the model.

    Raises:
        UserError: as `open_inputs`; a run to retain that is not the one of --weights.
    """
    wanted = _wanted(config, reference, resolved)
    primary = next((number for number, each in enumerate(wanted) if _has_masks(each.data)), 0)
    file = _file(config, reference, resolved)
    models: list[BuiltModel] = []

    def store(classes: tuple[str, ...]) -> StorePlan:
        if not models:
            own = (
                None
                if file is None
                else alone(file, wanted[primary].name)
                if file.tasks is not None
                else file
            )
            models.append(build_model(config, classes, reference, device, resolved, own))
        return plan_store(config.data, models[0].preprocessing)

    opened: dict[int, tuple[Dataset, dict[str, Any]]] = {}
    for number in sorted(range(len(wanted)), key=lambda number: number != primary):
        opened[number] = _open(config, wanted[number], reference.run, run, resolved, store)
    datasets = [opened[number][0] for number in range(len(wanted))]
    check_kind(models[0], _kind(datasets[primary]) == _MASKS)
    for dataset in datasets:
        check_channels(dataset.facts.num_channels, models[0].preprocessing.num_channels)
    heads = [
        (each.name, _kind(dataset), dataset.classes) for each, dataset in zip(wanted, datasets, strict=True)
    ]
    learned, seed = config.tasks.weights == UNCERTAINTY, config.train.seed
    built, views = with_heads(models[0], heads, wanted[primary].name, file, seed, learned)
    built.move_to(device)
    tasks = tuple(
        OpenedTask(each.name, dataset, view, each.data, each.trained, each.source)
        for each, dataset, view in zip(wanted, datasets, views, strict=True)
    )
    sources = tuple(
        OtherSource(str(each.data.path), *opened[number])
        for number, each in enumerate(wanted)
        if each.source is not None
    )
    return Inputs(datasets[0], replace(built, classes=views[0].classes), opened[0][1], sources, None, tasks)


def _wanted(config: Config, reference: WeightsReference, resolved: dict[str, Any] | None) -> list[_Wanted]:
    """The tasks of the config, then those of the run that must not be forgotten."""
    if resolved is not None:
        entries = resolved["tasks"]
        places = [config.data.path, *(source["path"] for source in resolved["sources"])]
        return [
            _Wanted(
                entry["name"],
                validate_section(DataConfig, entry["settings"]).model_copy(
                    update={
                        "path": places[0 if entry["source"] is None else 1 + entry["source"]],
                        "workers": config.data.workers,
                    }
                ),
                entry["trained"],
                entry["source"],
            )
            for entry in entries
        ]
    found = [_Wanted(first_name(config), config.data, True, None)]
    found += [
        _Wanted(name, data_of_task(config.data, path), True, number)
        for number, (name, path) in enumerate(config.tasks.data)
    ]
    names = {each.name for each in found}
    old = [(name, data) for name, data in _retained(config, reference) if name not in names]
    if config.retain.path is not None and not old:
        raise UserError(
            f"--retain {config.retain.path}: every task of it is trained here again",
            "a task that is not trained here",
            "leave --retain out: all tasks are measured anyway",
        )
    number = len(found) - 1
    return found + [_Wanted(name, data, False, number + more) for more, (name, data) in enumerate(old)]


def _retained(config: Config, reference: WeightsReference) -> list[tuple[str, DataConfig]]:
    """Name and data of each task of the run of --retain."""
    path = config.retain.path
    if path is None:
        return []
    run = reference.run
    if not layout.is_run(Path(path)) or run is None or absolute(path) != absolute(str(run.path)):
        raise UserError(
            f"--retain {path}: of several tasks, what is retained are the tasks of the run that --weights names",
            "--weights RUN --retain RUN, the same run",
            "name a data set to be learned from among --tasks",
        )
    if not run.tasks:
        place = run.resolved["data"]["path"]
        data = from_dict(run.config).data.model_copy(update={"path": place, "mix": ()})
        return [(task_name_of(place), data)]
    return [(entry["name"], validate_section(DataConfig, entry["settings"])) for entry in run.tasks]


def _file(config: Config, reference: WeightsReference, resolved: dict[str, Any] | None) -> WeightsFile | None:
    """What the model starts from; a run of one task that is retained is one of several, of which it has one."""
    if reference.file is None:
        return None
    file = read_weights(reference.file)
    if file.tasks is None and config.retain.path is not None and resolved is None:
        assert file.arch is not None, "weights of a run say what they are"
        known = outline(file.arch)
        assert reference.run is not None, "checked where its tasks were read"
        name = task_name_of(reference.run.resolved["data"]["path"])
        return with_name(file, name, known.head, known.segments)
    return file


def _has_masks(data: DataConfig) -> bool:
    source = open_source(
        str(data.path),
        allow_single_class=True,
        group=data.group,
        label_columns=data.label_columns,
        download=data.download,
        masks=MaskSettings.of(data),
    )
    return source.ignore is not None


def _kind(dataset: Dataset) -> str:
    if dataset.ignore is not None:
        return _MASKS
    return _SETS if dataset.splits["train"].targets.ndim == 2 else _LABELS


def _open(
    config: Config,
    wanted: _Wanted,
    parent: Run | None,
    run: Path,
    resolved: dict[str, Any] | None,
    store: Any,
) -> tuple[Dataset, dict[str, Any]]:
    """The data of one task, and by what they are split."""
    number, own = wanted.source, Run(run)
    known = None
    if resolved is not None:
        record = resolved["data"] if number is None else resolved["sources"][number]
        known = {"data": record} | {key: resolved[key] for key in ("created",) if key in resolved}
    divided = own.splits if number is None else own.source_splits(number)
    try:
        return open_divided(
            config.model_copy(update={"data": wanted.data}),
            None if parent is None else known_by(parent, str(wanted.data.path)),
            divided,
            known,
            store,
        )
    except UserError as error:
        raise UserError(f"the task {wanted.name}: {error.happened}", error.expected, error.fix) from None


def check_val(tasks: tuple[OpenedTask, ...]) -> None:
    """UserError where some tasks have val images, and others have none."""
    trained = [task for task in tasks if task.trained]
    lacking = [task.name for task in trained if "val" not in task.dataset.splits]
    if lacking and len(lacking) < len(trained):
        raise UserError(
            f"the tasks {listing(lacking)} have no val images, and others have",
            "val images of every task: the best step is chosen by all of them",
            "raise --val-ratio, or add images",
        )
