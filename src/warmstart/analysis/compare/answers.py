"""The answers of models on the same samples, by id: kept in runs where they can be, measured where they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from warmstart.analysis.compare.sides import Side
from warmstart.errors import UserError, listing
from warmstart.inference.predictions import read_predictions
from warmstart.records import Decision
from warmstart.run import layout

if TYPE_CHECKING:
    from warmstart.config.schema import DataConfig
    from warmstart.inference.restore import Restored

_LEAST_SHARED = 0.5  # of the larger set of samples
PREDICTIONS = "predictions.parquet"  # in the folder of an evaluation

Restore = Callable[[str, bool], "tuple[Restored, int]"]  # (reference, whether it is a file) -> model, threads


@dataclass(frozen=True)
class Answers:
    """N samples, K classes. `scores` (N, K) are probabilities; of masks, rows of counts (tasks/mask_metrics.py).

    `targets` are class numbers (N,), or uint8 (N, K) for sets; None of masks. `cuts` are the thresholds of sets.
    """

    side: Side
    kind: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    targets: np.ndarray | None
    scores: np.ndarray
    cuts: tuple[float, ...] | None = None
    decision: Decision | None = None

    def at(self, places: np.ndarray) -> Answers:
        """Of these samples, int64 (M,), in this order."""
        names = self.ids
        return replace(
            self,
            ids=tuple(names[place] for place in places.tolist()),
            targets=None if self.targets is None else self.targets[places],
            scores=self.scores[places],
        )


def kept_answers(side: Side, split: str) -> Answers | None:
    """Those that the run keeps of this split and step, by training or by an evaluation; None without any."""
    if side.run is None or side.step is None:
        return None
    run, step = side.run, side.step
    folder = run.path / layout.EVALUATIONS / f"{layout.of_task(split, run.task)}@{step}"
    places: tuple[Path, ...] = (run.predictions(split, step), folder / PREDICTIONS)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    found = read_predictions(path)
    return Answers(
        side,
        str(side.kind),
        found.classes,
        found.ids,
        found.targets,
        found.scores,
        _cuts(side, found.classes),
        _decision(side, split, found.classes),
    )


def _cuts(side: Side, classes: tuple[str, ...]) -> tuple[float, ...] | None:
    assert side.run is not None
    found = side.run.thresholds
    if side.kind != "multi-label" or found is None or found["step"] != side.step:
        return None
    return tuple(found["thresholds"][name] for name in classes)


def _decision(side: Side, split: str, classes: tuple[str, ...]) -> Decision | None:
    """The threshold with which the row of these predictions was measured."""
    threshold = side.row(split).get("threshold")
    if threshold is None or len(classes) != 2 or side.run is None:
        return None
    return Decision(side.run.config["task"].get("positive") or classes[1], threshold)


def measure_answers(
    side: Side,
    split: str | None,
    home: Side | None,
    data: DataConfig | None,
    restore: Restore,
    batch_size: int | None,
) -> tuple[Answers, str, str]:
    """Run the model over the split of `data`, of its own run, or (a file) of the run `home`; and the split's name, and
    the data's fingerprint, which is the same wherever they were named.

    What a run answers on its own data is kept in it, as by `warmstart evaluate`. `data` are read and divided as `home`
    does it, for every model alike.
    """
    from warmstart.analysis.evaluate import evaluate
    from warmstart.analysis.samples import open_evaluation_set, task_and_targets

    restored, workers = restore(side.reference if side.run is None else side.label, side.run is None)
    if data is None and side.run is not None:
        found = evaluate(restored, None, split, batch_size, workers)
        kept = _of(side, found.task, found.classes, found.ids, found.targets, found.outputs)
        return kept, found.split, str(side.data["fingerprint"])
    if data is None and (home is None or home.run is None):
        raise UserError(
            f"no samples to compare on: {side.label} is no run", "data with labels", "--data FOLDER"
        )
    chosen = open_evaluation_set(None if home is None else home.run, data, split, restored.built)
    task, targets = task_and_targets(chosen, restored)
    outputs = restored.outputs(chosen.samples, batch_size, workers, None, task)
    measured = _of(side, task, restored.built.classes, chosen.ids, targets, outputs)
    return measured, chosen.split, chosen.fingerprint


def _of(
    side: Side, task: Any, classes: tuple[str, ...], ids: tuple[str, ...], targets: Any, outputs: np.ndarray
) -> Answers:
    is_masks = task.statistics is not None
    return Answers(
        side,
        task.name,
        classes,
        ids,
        None if is_masks else np.asarray(targets),
        task.scores(outputs),
        getattr(task, "thresholds", None),
        getattr(task, "decision", None),
    )


def align(models: Sequence[Answers]) -> tuple[list[Answers], int]:
    """The same, on the samples that all have, in the order and with the class numbers of the first; how many are not.

    Raises:
        UserError: other tasks, classes or labels, fewer than half of the samples in common, or answers that are
            no numbers.
    """
    first = models[0]
    found = [first, *(_in_order_of(first, other) for other in models[1:])]
    shared = set(first.ids).intersection(*(other.ids for other in found[1:]))
    largest = max(len(other.ids) for other in found)
    if len(shared) < _LEAST_SHARED * largest:
        raise UserError(
            f"only {len(shared)} of up to {largest} samples are the same in {listing(m.side.label for m in models)}",
            "models measured on the same samples: half of them at least",
            "--data DATA measures all of them on the same images",
        )
    names = [name for name in first.ids if name in shared]
    aligned = []
    for other in found:
        place = {name: number for number, name in enumerate(other.ids)}
        aligned.append(other.at(np.array([place[name] for name in names], dtype=np.int64)))
    for other in aligned:
        _check(aligned[0], other)
    return aligned, largest - len(shared)


def _in_order_of(first: Answers, other: Answers) -> Answers:
    """`other` with its classes in the order of the first."""
    if first.kind != other.kind:
        raise UserError(
            f"{first.side.label} is {first.kind}, {other.side.label} is {other.kind}", "models of one task"
        )
    if set(first.classes) != set(other.classes):
        lost = sorted(set(first.classes) ^ set(other.classes))
        raise UserError(
            f"{first.side.label} and {other.side.label} have different classes: {listing(lost, 5)} in one of them only",
            "models of the same classes",
        )
    if first.classes == other.classes:
        return other
    order = np.array([other.classes.index(name) for name in first.classes], dtype=np.int64)
    if other.kind == "segmentation":
        raise UserError(
            f"{first.side.label} and {other.side.label} number the classes of masks differently", "one order"
        )
    targets = other.targets
    if targets is not None:
        back = np.argsort(order)
        targets = targets[:, order] if targets.ndim == 2 else back[targets]
    cuts = None if other.cuts is None else tuple(other.cuts[place] for place in order)
    return replace(other, classes=first.classes, scores=other.scores[:, order], targets=targets, cuts=cuts)


def _check(first: Answers, other: Answers) -> None:
    """UserError where the same ids are other samples, or a score is no number."""
    if not np.isfinite(other.scores).all():
        raise UserError(
            f"the answers of {other.side.label} are not finite", "numbers", "`warmstart inspect` says more"
        )
    if first.targets is None or other.targets is None:
        same = _pixels(first) == _pixels(other)
    else:
        same = first.targets == other.targets
    differing = int((~same.reshape(len(same), -1).all(axis=1)).sum())
    if differing:
        raise UserError(
            f"{differing} of {len(same)} samples have another label in {first.side.label} than in {other.side.label}",
            "the same samples with the same labels",
            "--data DATA measures all of them on the same images",
        )


def _pixels(masks: Answers) -> np.ndarray:
    """(N, K): target pixels by class."""
    num = len(masks.classes)
    return masks.scores[:, 2 * num : 3 * num]
