"""Which samples an evaluation is about, with targets in the model's own class numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart.config.io import from_dict
from warmstart.config.schema import DataConfig
from warmstart.console import log
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.samples import Samples
from warmstart.errors import UserError, closest, listing
from warmstart.run.reader import Run


@dataclass(frozen=True)
class EvaluationSet:
    """Samples of the chosen splits in a row."""

    samples: tuple[Samples, ...]
    targets: np.ndarray
    split: str
    path: str
    is_own: bool  # the data that the run was trained on

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.samples for name in part.ids)


def open_evaluation_set(
    run: Run | None, data: str | None, split: str | None, classes: tuple[str, ...], names_known: bool
) -> EvaluationSet:
    """The run's own data with the run's own splits, or other data as they are.

    Raises:
        UserError: no data named, no such split, or classes that the model does not have.
    """
    own = run.resolved["data"]["path"] if run is not None else None
    is_own = run is not None and (data is None or _same_path(data, own))
    if is_own:
        assert run is not None
        config = from_dict(run.config)
        known = tuple((name, reason) for name, reason in run.resolved["data"]["quarantined"])
        dataset = open_dataset(config.data.model_copy(update={"path": own}), config.train.seed, known)
        if dataset.facts.fingerprint != run.resolved["data"]["fingerprint"]:
            log.warning("the data in %s have changed since the run", own)
    elif not data:
        raise UserError("--data is missing", "the data set to evaluate on", "pass --data FOLDER")
    else:
        # Foreign data are evaluated as they are: one folder without splits is not cut into three.
        dataset = open_dataset(DataConfig(path=data), 0, for_training=False)
    names = _choose(dataset, split, is_own, str(data or own))
    parts = tuple(dataset.splits[name] for name in names)
    targets = np.concatenate([part.targets for part in parts])
    mapped = _map_classes(targets, dataset.classes, classes, names_known)
    return EvaluationSet(parts, mapped, ",".join(names), str(data or own), is_own)


def _choose(dataset: Dataset, split: str | None, is_own: bool, path: str) -> list[str]:
    available = list(dataset.splits)
    if split == "all":
        return available
    if split is None:
        return [next(name for name in ("test", "val", "all", "train") if name in available)]
    wanted = [name.strip() for name in split.split(",")]
    for name in wanted:
        if name not in available:
            raise UserError(
                f"--split {name}: {path} has no such split",
                f"{listing(available)}, or all",
                closest(name, available),
            )
    return wanted


def _map_classes(
    targets: np.ndarray, found: tuple[str, ...], classes: tuple[str, ...], names_known: bool
) -> np.ndarray:
    """Class numbers of the data -> class numbers of the model, by name; by order where the model has no names."""
    if not names_known:
        if len(found) != len(classes):
            raise UserError(
                f"the weights have {len(classes)} outputs without names, the data {len(found)} classes",
                "as many classes as outputs",
                "evaluate on data with the classes that the model was trained on",
            )
        return targets
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"the data have classes that the model does not know: {listing(unknown)}",
            f"classes among {listing(classes)}",
            closest(unknown[0], classes) or "to learn new classes, use `warmstart finetune`",
        )
    return np.array([classes.index(name) for name in found], dtype=np.int64)[targets]


def _same_path(first: str, second: str | None) -> bool:
    return second is not None and Path(first).resolve() == Path(second).resolve()
