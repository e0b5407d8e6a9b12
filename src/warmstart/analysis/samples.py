"""Which samples an evaluation is about, with targets in the model's own class numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from warmstart.config.io import from_dict
from warmstart.config.mask_values import LABEL_LEAVES
from warmstart.config.schema import DataConfig
from warmstart.console import log
from warmstart.data.dataset import Dataset, Recorded, open_dataset, split_settings
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.samples import Samples
from warmstart.data.sources import open_source
from warmstart.data.store_plan import plan_store
from warmstart.errors import UserError, closest, listing
from warmstart.inference.restore import Restored
from warmstart.models.build import BuiltModel
from warmstart.run.reader import Run
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class EvaluationSet:
    """Samples of the chosen splits in a row; `targets` number the data's own `classes`."""

    samples: tuple[Samples, ...]
    targets: np.ndarray
    classes: tuple[str, ...]
    split: str
    path: str
    fingerprint: str
    unreadable: tuple[tuple[str, str], ...]  # (id, reason) of images that were left out
    is_own: bool  # the data that the run was trained on, unchanged
    ignore: int | None = None  # the id of pixels without a class; None: no masks

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.samples for name in part.ids)


def class_names(run: Run | None, data: DataConfig | None) -> tuple[str, ...]:
    """Those of the run's own data or of others, before there is a model. UserError: no data are named."""
    own = from_dict(run.config).data if run is not None else DataConfig()
    asked = data if data is not None and "label_columns" in data.model_fields_set else own
    return open_source(_path(run, data), allow_single_class=True, label_columns=asked.label_columns).classes


def _path(run: Run | None, data: DataConfig | None) -> str:
    path = data.path if data is not None else run.resolved["data"].get("path") if run is not None else None
    if not path:
        raise UserError("--data is missing", "the data set to evaluate on", "pass --data FOLDER")
    return str(path)


def open_evaluation_set(
    run: Run | None, data: DataConfig | None, split: str | None, built: BuiltModel | None
) -> EvaluationSet:
    """The run's own data with the run's own splits, wherever they lie now, or other data as they are.

    Of `data`, the path counts, and what says how labels are read where it was given, else the run's is used. Ids
    of other masks that nothing names are the model's classes. Without a model the images are only looked at.

    Raises:
        UserError: no data named, or no such split.
    """
    recorded = run.resolved["data"] if run is not None else {}
    path = _path(run, data)
    own = from_dict(run.config).data if run is not None else DataConfig()
    given = {name: getattr(own, name) for name in LABEL_LEAVES}
    is_own = data is None
    if data is not None:
        given |= {name: getattr(data, name) for name in LABEL_LEAVES if name in data.model_fields_set}
        masks = MaskSettings.of(DataConfig().model_copy(update=given))
        source = open_source(path, allow_single_class=True, label_columns=given["label_columns"], masks=masks)
        is_own = source.fingerprint == recorded.get("fingerprint")
        if source.ignore is not None and not source.classes and built is not None and built.segments:
            given["mask_classes"] = built.classes
    if is_own and run is not None:
        settings = own.model_copy(update={"path": path, **split_settings(recorded["split"])})
        known = (*map(tuple, recorded["quarantined"]), *run.status.get("unreadable", {}).items())
        # Decoding everything for one split would not pay; what training has kept is there.
        plan = (
            plan_store(own, built.preprocessing, "off" if own.cache == "off" else "warm") if built else None
        )
        opened = Recorded(known, run.splits)
        store = None if plan is None else lambda _: plan
        dataset = open_dataset(settings, recorded["split"]["seed"], opened, store=store)
        if not (is_own := dataset.facts.fingerprint == recorded["fingerprint"]):
            log.warning(
                "the data in %s have changed since the run: nothing is recorded as its own result", path
            )
    else:
        # Other data are evaluated as they are: one folder without splits is not cut into three, and
        # broken files are left out and named, however many.
        settings = DataConfig(path=path, max_corrupt=1.0).model_copy(update=given)
        dataset = open_dataset(settings, 0, for_training=False)
        is_own = False
    if unreadable := dataset.facts.quarantined:
        log.warning(
            "%d unreadable images are left out: %s", len(unreadable), listing((n for n, _ in unreadable), 5)
        )
    names = _choose(dataset, split, path)
    parts = tuple(dataset.splits[name] for name in names)
    return EvaluationSet(
        parts,
        np.concatenate([part.targets for part in parts]),
        dataset.classes,
        ",".join(names),
        path,
        dataset.facts.fingerprint,
        unreadable,
        is_own,
        dataset.ignore,
    )


def splits_of(everything: EvaluationSet) -> dict[str, EvaluationSet]:
    """A set of all splits, taken apart."""
    found, first = {}, 0
    for name, samples in zip(everything.split.split(","), everything.samples, strict=True):
        rows = slice(first, first := first + len(samples))
        found[name] = replace(everything, samples=(samples,), targets=everything.targets[rows], split=name)
    return found


def task_and_targets(
    chosen: EvaluationSet, restored: Restored
) -> tuple[Classification | MultiLabel | Segmentation, np.ndarray]:
    """What to ask of the model, and the targets in its own class numbers: by name, or by order without names.

    A model of sets takes images with one label each as sets of one. Weights that say nothing about
    themselves are taken for what the data are.

    Raises:
        UserError: the data have classes that the model does not have, sets where it gives one class, or masks
            where it gives none.
    """
    built, task, targets = restored.built, restored.task, chosen.targets
    places = _places(chosen, built)
    if isinstance(task, Segmentation) or chosen.ignore is not None:
        return _segmentation(chosen, restored, places), targets
    num_classes = len(built.classes)
    if targets.ndim == 2 and not built.multi_label:
        if built.names_known:
            raise UserError(
                f"the labels of {chosen.path} are sets, and the model gives one class per image",
                "images with one label each, or a multi-label model",
                "`warmstart finetune` makes a multi-label model of it",
            )
        log.warning("the weights say nothing about their task: taken as multi-label, as the labels are sets")
        task = MultiLabel(built.classes)
    if isinstance(task, Classification):
        return task, places[targets]
    found = np.zeros((len(targets), num_classes), dtype=np.uint8)
    if targets.ndim == 2:
        found[:, places] = targets
    else:
        found[np.arange(len(targets)), places[targets]] = 1
    return task, found


def _segmentation(chosen: EvaluationSet, restored: Restored, places: np.ndarray) -> Segmentation:
    built, task = restored.built, restored.task
    if chosen.ignore is None or not isinstance(task, Segmentation):
        kinds = ("masks", "a class per pixel") if built.segments else ("labels", "a class per image")
        raise UserError(
            f"{chosen.path} has {'no masks' if chosen.ignore is None else 'masks'}, and {built.name} gives {kinds[1]}",
            f"images with {kinds[0]}",
        )
    if places.tolist() != list(range(len(places))):  # the highest may be missing
        raise UserError(
            f"the masks of {chosen.path} number the classes otherwise than the model does",
            listing(f"{number}={name}" for number, name in enumerate(built.classes)),
            "--mask-remap gives the ids of the masks the model's numbers",
        )
    return replace(task, ignore=chosen.ignore)


def _places(chosen: EvaluationSet, built: BuiltModel) -> np.ndarray:
    """int64: the model's number of each of the data's classes."""
    found, classes = chosen.classes, built.classes
    if not built.names_known:
        if len(found) != len(classes):
            raise UserError(
                f"the weights have {len(classes)} outputs without names, the data {len(found)} classes",
                "as many classes as outputs",
                "evaluate on data with the classes that the model was trained on",
            )
        if found != classes:  # names other than 0, 1, 2, ...
            pairs = listing((f"output {number} as {name!r}" for number, name in enumerate(found)), 6)
            log.warning(
                "the weights name no classes; taken by order: %s. In another order all is wrong", pairs
            )
        return np.arange(len(found))
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"the data have classes that the model does not know: {listing(unknown)}",
            f"classes among {listing(classes)}",
            closest(unknown[0], classes) or "to learn new classes, use `warmstart finetune`",
        )
    return np.array([classes.index(name) for name in found], dtype=np.int64)


def _choose(dataset: Dataset, split: str | None, path: str) -> list[str]:
    available = list(dataset.splits)
    if split == "all":
        return available
    if split is None:
        return [next(name for name in ("test", "val", "all", "train") if name in available)]
    wanted = list(dict.fromkeys(name.strip() for name in split.split(",")))
    for name in wanted:
        if name not in available:
            raise UserError(
                f"--split {name}: {path} has no such split",
                f"{listing(available)}, or all",
                closest(name, available),
            )
    return wanted
