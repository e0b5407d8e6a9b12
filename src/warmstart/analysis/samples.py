"""Which samples an evaluation is about, with targets in the model's own class numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from warmstart.config.io import from_dict
from warmstart.config.schema import DataConfig
from warmstart.console import log
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.samples import Samples
from warmstart.data.sources import open_source
from warmstart.errors import UserError, closest, listing
from warmstart.models.build import BuiltModel
from warmstart.run.reader import Run


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

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.samples for name in part.ids)


def open_evaluation_set(run: Run | None, data: str | None, split: str | None) -> EvaluationSet:
    """The run's own data with the run's own splits, wherever they lie now, or other data as they are.

    Raises:
        UserError: no data named, or no such split.
    """
    recorded = run.resolved["data"] if run is not None else {}
    path = data or recorded.get("path")
    if not path:
        raise UserError("--data is missing", "the data set to evaluate on", "pass --data FOLDER")
    is_own = data is None or open_source(path, allow_single_class=True).fingerprint == recorded.get(
        "fingerprint"
    )
    if is_own and run is not None:
        settings = from_dict(run.config).data.model_copy(
            update={"path": path, **{name: recorded["split"][name] for name in ("train_ratio", "val_ratio")}}
        )
        known = tuple((name, reason) for name, reason in recorded["quarantined"])
        dataset = open_dataset(settings, recorded["split"]["seed"], known)
        is_own = dataset.facts.fingerprint == recorded["fingerprint"]
        if not is_own:
            log.warning(
                "the data in %s have changed since the run: nothing is recorded as its own result", path
            )
    else:
        # Other data are evaluated as they are: one folder without splits is not cut into three, and
        # broken files are left out and named, however many.
        dataset = open_dataset(DataConfig(path=path, max_corrupt=1.0), 0, for_training=False)
        is_own = False
    unreadable = dataset.facts.quarantined
    if unreadable:
        log.warning(
            "%d unreadable images are left out: %s", len(unreadable), listing((n for n, _ in unreadable), 5)
        )
    names = _choose(dataset, split, path)
    parts = tuple(dataset.splits[name] for name in names)
    targets = np.concatenate([part.targets for part in parts])
    return EvaluationSet(
        parts, targets, dataset.classes, ",".join(names), path, dataset.facts.fingerprint, unreadable, is_own
    )


def targets_for(chosen: EvaluationSet, built: BuiltModel) -> np.ndarray:
    """The targets in the model's class numbers: by name; by order where the weights name no classes.

    Raises:
        UserError: the data have classes that the model does not have.
    """
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
        return chosen.targets
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"the data have classes that the model does not know: {listing(unknown)}",
            f"classes among {listing(classes)}",
            closest(unknown[0], classes) or "to learn new classes, use `warmstart finetune`",
        )
    return np.array([classes.index(name) for name in found], dtype=np.int64)[chosen.targets]


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
