"""Which images are looked into: some that are right, and those that are most wrong.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.mistakes import confident_mistakes
from warmstart.errors import UserError, closest, listing
from warmstart.tasks.classification import Classification
from warmstart.tasks.mask_metrics import counts_of, ious
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

AnyTask = Classification | MultiLabel | Segmentation
RIGHT, WRONG, GIVEN = "right", "wrong", "given"
PROBABILITY, IOU, SHARE = "probability", "IoU", "share"
_SMALLEST_SHARE = 0.01  # of an image's pixels: what is smaller is no case to look at
_RIGHT_IOU = 0.5
NONE = "none"  # of a set of labels
_NUM_CLASSES = 2  # explained of an image without a label


@dataclass(frozen=True)
class Case:
    """An image, by its place among the samples, and the classes that are explained in it, its answer first."""

    place: int
    group: str  # right, wrong, or given: without a label
    classes: tuple[int, ...]
    label: str
    answer: str
    scored: str  # the class that the score is of: the first one that is explained
    score: float
    measure: str = PROBABILITY  # of masks the IoU in this image, or the share of its pixels

    @property
    def title(self) -> str:
        """Label and answer, and whose score follows where that is not the answer's."""
        names = self.answer if self.label in ("", self.answer) else f"{self.label} → {self.answer}"
        words = [] if self.measure == PROBABILITY else [self.measure]
        if self.scored != self.answer:
            names, words = f"{names};", [*words, *(["of"] if words else []), self.scored]
        return " ".join([names, *words, f"{self.score:.2f}"])


def class_number(name: str, classes: Sequence[str]) -> int:
    """UserError: the model has no such class."""
    if name not in classes:
        raise UserError(
            f"--class-name {name}: the model has no such class", listing(classes), closest(name, classes)
        )
    return list(classes).index(name)


def labelled_cases(
    task: AnyTask, outputs: NDArray[np.float32], targets: NDArray[np.int64], num: int, only: int | None
) -> list[Case]:
    """Half of `num` right, spread over the classes, and half wrong, the surest first; `only` of images of that class.

    `outputs` are logits (N, K), or the rows of counts that the task keeps of masks.

    Raises:
        UserError: no image of the class.
    """
    if isinstance(task, Segmentation):
        right, wrong = _of_masks(task, outputs, only)
    elif isinstance(task, MultiLabel):
        right, wrong = _of_sets(task, outputs, targets, only)
    else:
        right, wrong = _of_classes(task, outputs, targets, only)
    if not right and not wrong:
        wanted = "has a label" if only is None else f"of the class {task.classes[only]}"
        raise UserError(
            f"no image {wanted} among these {len(outputs)}",
            "images of the class that is explained",
            "another --class-name, --split or --data, or more images with --limit",
        )
    num_wrong = min(len(wrong), max(num // 2, num - len(right)))
    return [*right[: num - num_wrong], *wrong[:num_wrong]]


def unlabelled_cases(task: AnyTask, outputs: NDArray[np.float32], only: int | None) -> list[Case]:
    """One for every image: the `only` class, or the two with the highest scores. Of masks, `outputs` are shares of
    pixels by class (N, K), and the answer is the class with most of them."""
    is_mask = isinstance(task, Segmentation)
    measure = SHARE if is_mask else PROBABILITY
    scores = outputs if isinstance(task, Segmentation) else task.scores(outputs)
    found = []
    for place, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")
        if isinstance(task, Classification):
            answer = task.answers(outputs[place : place + 1])
            order = np.concatenate([answer, order[order != answer[0]]])
        few = [int(k) for k in order[:_NUM_CLASSES] if not is_mask or row[k] > 0]
        chosen = (only,) if only is not None else tuple(few)
        name = _said(task, row) if isinstance(task, MultiLabel) else task.classes[int(order[0])]
        scored, score = task.classes[chosen[0]], float(row[chosen[0]])
        found.append(Case(place, GIVEN, chosen, "", name, scored, score, measure))
    return found


def _in_turn(places: NDArray[np.int64], classes: NDArray[np.int64]) -> list[int]:
    """Places in the order of a round over the classes, each time the next of each."""
    rounds: dict[int, int] = {}
    keys = []
    for rank, (place, number) in enumerate(zip(places.tolist(), classes.tolist(), strict=True)):
        rounds[number] = rounds.get(number, -1) + 1
        keys.append((rounds[number], rank, place))
    return [place for _, _, place in sorted(keys)]


def _of_classes(
    task: Classification, outputs: NDArray[np.float32], targets: NDArray[np.int64], only: int | None
) -> tuple[list[Case], list[Case]]:
    answers, scores = task.answers(outputs), task.scores(outputs)
    sure = np.argsort(-scores[np.arange(len(answers)), answers], kind="stable")
    good = sure[answers[sure] == targets[sure]]
    wrong = confident_mistakes(task, outputs, targets)
    if only is not None:
        good, wrong = good[targets[good] == only], wrong[targets[wrong] == only]

    def case(place: int, group: str) -> Case:
        answer, label = int(answers[place]), int(targets[place])
        both = (answer,) if answer == label else (answer, label)
        chosen = both if only is None else (only,)
        names = task.classes[label], task.classes[answer]
        return Case(place, group, chosen, *names, task.classes[chosen[0]], float(scores[place, chosen[0]]))

    in_turn = _in_turn(good, targets[good])
    return [case(p, RIGHT) for p in in_turn], [case(p, WRONG) for p in wrong.tolist()]


def _of_sets(
    task: MultiLabel, outputs: NDArray[np.float32], targets: NDArray[np.int64], only: int | None
) -> tuple[list[Case], list[Case]]:
    """Right where the whole set is, wrong where a label of it is; `only`: of images that have this label, where it was
    said or missed. Explained is the label that is furthest from its threshold, in logits: of a right set among what was
    said, of a wrong one among what is wrong. Where rightly nothing was said, there is nothing to explain."""
    scores, has = task.scores(outputs), targets > 0
    said = scores >= task.cuts
    cuts = np.clip(task.cuts, 1e-6, 1 - 1e-6)
    margins = np.abs(outputs - np.log(cuts / (1 - cuts)))
    if only is not None:
        chosen = np.arange(scores.shape[1]) == only
        hits, misses = has & said & chosen, has & ~said & chosen
    else:
        misses = np.not_equal(has, said)
        hits = has & said & ~misses.any(axis=1, keepdims=True)

    def case(place: int, number: int, group: str) -> Case:
        label = ", ".join(task.classes[k] for k in np.flatnonzero(has[place])) or NONE
        score = float(scores[place, number])
        return Case(place, group, (number,), label, _said(task, scores[place]), task.classes[number], score)

    def surest(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(M, 2): the places with a mark, each with its label of the largest margin, the largest first."""
        values = np.where(marks, margins, -1.0)
        best = values.argmax(axis=1)
        marked = np.flatnonzero(marks.any(axis=1))
        order = marked[np.argsort(-values[marked, best[marked]], kind="stable")]
        return np.stack([order, best[order]], axis=1)

    good, wrong = surest(hits), surest(misses)
    in_turn = good[_in_turn(np.arange(len(good)), good[:, 1])]
    return [case(p, k, RIGHT) for p, k in in_turn.tolist()], [case(p, k, WRONG) for p, k in wrong.tolist()]


def _said(task: MultiLabel, scores: NDArray[np.float32]) -> str:
    """The labels at or above their thresholds, of scores (K,)."""
    return ", ".join(task.classes[k] for k in np.flatnonzero(scores >= task.cuts)) or NONE


def _of_masks(
    task: Segmentation, rows: NDArray[np.float32], only: int | None
) -> tuple[list[Case], list[Case]]:
    """Pairs of image and class, right from an IoU of .5 on: the best of every class in turn, and the lowest.

    What most pixels of the class were given is not in the counts: `look_at` adds it as the answer."""
    counts = counts_of(rows)
    with np.errstate(invalid="ignore"):
        share = counts.wanted / np.maximum(counts.num_valid[:, None], 1)
        quality = np.where(share >= _SMALLEST_SHARE, ious(counts), np.nan)
    if only is not None:
        quality = np.where(np.arange(quality.shape[1]) == only, quality, np.nan)
    pairs = np.argwhere(np.isfinite(quality))
    pairs = pairs[np.argsort(-quality[tuple(pairs.T)], kind="stable")]
    is_right = quality[tuple(pairs.T)] >= _RIGHT_IOU
    good = pairs[is_right]
    best = good[_in_turn(np.arange(len(good)), good[:, 1])]

    def case(pair: NDArray[np.int64], group: str) -> Case:
        place, number = map(int, pair)
        name = task.classes[number]
        return Case(place, group, (number,), name, "", name, float(quality[place, number]), IOU)

    worst = pairs[~is_right][::-1]
    worst = worst[_in_turn(np.arange(len(worst)), worst[:, 1])]
    return [case(pair, RIGHT) for pair in _once(best)], [case(pair, WRONG) for pair in _once(worst)]


def _once(pairs: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The first pair of every image."""
    seen: set[int] = set()
    for pair in pairs:
        if int(pair[0]) not in seen:
            seen.add(int(pair[0]))
            yield pair
