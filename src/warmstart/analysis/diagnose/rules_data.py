"""Rules about the images and their labels: splits, copies, rare classes, noise, a val too small to decide.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.analysis.diagnose.findings import Finding
from warmstart.analysis.diagnose.history import History, lower_end
from warmstart.errors import listing
from warmstart.tasks.label_errors import likely_mislabelled
from warmstart.tasks.metrics import confusion

if TYPE_CHECKING:
    from warmstart.analysis.diagnose.evidence import Answers, Copies

_RARE = 5  # times as many images of the largest class as of the smallest
_SMALL_VAL, _WIDE = 100, 0.08
_LEAST_CLASSES = 4  # with fewer, mistakes are spread over all pairs anyway
_FEW = 5  # images of a class below which its recall says nothing


def splits_differ(history: History) -> Finding | None:
    """Train and val have other shares of the classes: cut from a sorted list, not drawn (rows 3D, 3E)."""
    counts = _counts(history)
    if counts is None:
        return None
    train, val, names = counts
    shares = train / train.sum(), val / val.sum()
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    both = (train + val) / (train.sum() + val.sum())
    # Half the sum of mean absolute deviations of two binomial shares: what drawing alone gives.
    by_chance = float(
        (np.sqrt(both * (1 - both) * (1 / train.sum() + 1 / val.sum())) * math.sqrt(2 / math.pi)).sum() / 2
    )
    if distance < max(0.2, 3 * by_chance):
        return None
    lacking = [name for name, number in zip(names, val, strict=True) if number == 0]
    far = np.argsort(-np.abs(shares[0] - shares[1]))[:2]
    told = [
        f"{distance:.0%} of val would have to change class to be like train; drawn at random it would be"
        f" {by_chance:.0%}",
        "; ".join(
            f"{names[k]}: {shares[0][k]:.0%} of train, {shares[1][k]:.0%} of val" for k in far.tolist()
        ),
    ]
    if lacking:
        told.append(f"val has no image of {listing(lacking, 6)}")
    return Finding(
        "splits_differ",
        0.95,
        "train and val were not drawn alike: the images were cut in order, without shuffling",
        tuple(told),
        "divide anew by class (`warmstart prepare folders`, or data without splits); --write makes such a table",
        "3D, 3E",
        {"distance": distance, "by_chance": by_chance, "lacking": lacking},
        data="divide",
    )


def _counts(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]] | None:
    """Images by class (K,) in train and val, and the names; None for anything but one class per image."""
    if history.num_classes is None or history.run is None:
        return None
    found = history.run.resolved["data"]["counts"]
    if not {"train", "val"} <= set(found):
        return None
    names = list(found["train"])
    train, val = (np.array([found[split][name] for name in names], float) for split in ("train", "val"))
    return (train, val, names) if train.sum() and val.sum() else None


def imbalance(history: History) -> Finding | None:
    """A class has far fewer images, and is recognised far worse; or val has too few of it to show that it is not
    (rows 1.29, 3D)."""
    counts = _counts(history)
    if counts is None or history.best is None:
        return None
    train, val, names = counts
    ratio = float(train.max() / max(1, train.min()))
    right, fair = (history.best.val.get(name, math.nan) for name in ("accuracy", "balanced_accuracy"))
    is_met = history.setting("data.sampler") == "balanced" or history.setting("task.class_weights")
    if ratio < _RARE or is_met:
        return None
    rarest = int(train.argmin())
    suffers = right - fair > _WIDE
    told = [f"the largest class has {ratio:.0f} times as many"]
    if suffers:
        told.append(
            f"accuracy {right:.3f} hides a mean recall of {fair:.3f} (chance is {1 / len(names):.3f})"
        )
    else:
        found = _rare_recall(train, val, right, fair)
        if found is None or not right - found.low > 2 * _WIDE:
            return None
        told.append(
            f"recall of rare classes on val is {found.recall:.2f}, by {found.num} images: it may be {found.low:.2f}"
            f" (95 %), and accuracy {right:.3f} would hardly show it"
        )
    what = "rare classes are not learned" if suffers else "val cannot show whether rare classes are learned"
    return Finding(
        "imbalance",
        0.85 if suffers else 0.55,
        f"{what}: {names[rarest]} has {train.min():.0f} of {train.sum():.0f} training images",
        tuple(told),
        "every class equally often (--sampler balanced), and choose the best by balanced_accuracy or f1; weights of"
        " classes cost ce7454's authors 11 points, so measure them",
        "1.29, 3D, 3G",
        {"ratio": ratio, "accuracy": right, "balanced_accuracy": fair, "rarest": names[rarest]},
        {"data.sampler": "balanced", "train.select_by": "balanced_accuracy"},
        variant="" if suffers else "unseen",
    )


class RareRecall(NamedTuple):
    """Recall of the rare classes together on val, the lower end of its 95 % interval, and their images there."""

    recall: float
    low: float
    num: int


def _rare_recall(
    train: NDArray[np.float64], val: NDArray[np.float64], right: float, fair: float
) -> RareRecall | None:
    """From the images by class (K,), accuracy and mean recall: two equations for the recall of the rare classes and
    that of the others, exact for one class of each kind. None where val shows rare classes as often as others.
    """
    is_rare = train < train.max() / _RARE
    num, share = int(val[is_rare].sum()), float(val[is_rare].sum() / val.sum())
    if not num or share == 1 or math.isnan(right + fair):
        return None
    others = (~is_rare).sum() / (1 - share)
    weight = is_rare.sum() - others * share
    if weight < 0.5 * is_rare.sum():
        return None
    recall = float(np.clip((fair * len(train) - others * right) / weight, 0, 1))
    return RareRecall(recall, lower_end(recall, num), num)


def val_too_small(history: History) -> Finding | None:
    """The interval of val is wider than the gains that are to be measured (rows 2.23, 3D)."""
    if history.best is None or not history.noise:
        return None
    num, half = history.best.val.get("num_samples"), 1.96 * history.noise
    if num is None or (num >= _SMALL_VAL and (half < _WIDE or num >= 2 * _SMALL_VAL)):
        return None
    tried = len(history.validations)
    # McNemar with a power of 80 %: (1.96 + .84)^2 x share of changed answers (.1) / difference^2.
    wanted = round(7.84 * 0.1 / 0.03**2)
    return Finding(
        "val_too_small",
        0.55,
        f"val has {num:.0f} images: it cannot tell one step from another",
        (
            f"95 % interval of {history.metric}: {half:.3f} to each side",
            f"the best of {tried} validations is then about {_best_of(tried) * history.noise:.3f} too good by luck",
        ),
        f"more val images (about {wanted} see a difference of 3 points), or choose by the loss, which is finer;"
        " report test only",
        "2.20, 2.23, 3D",
        {"num_samples": num, "half_width": half, "num_validations": tried},
        {"train.select_by": "loss"},
        data="divide",
    )


def _best_of(num: int) -> float:
    """Expected largest of so many normal numbers, about sqrt(2 ln n) for large n (Blom 1958's median form)."""
    from statistics import NormalDist

    return max(0.0, NormalDist().inv_cdf((num - 0.375) / (num + 0.25))) if num > 1 else 0.0


def leakage(history: History, copies: Copies) -> Finding | None:
    """Val images that are training images, byte for byte, or a val far better than test (rows 3D, 1.29)."""
    share = copies.num / max(1, copies.num_val)
    if copies.num < max(2, 0.01 * copies.num_val):
        return None
    told = [
        f"{copies.num} of {copies.num_val} val images are in train too, byte for byte: {listing(copies.pairs, 3)}"
    ]
    if history.run is not None and (found := _val_and_test(history)) is not None:
        told.append(f"{history.metric} {found[0]:.3f} on val, {found[1]:.3f} on test")
    return Finding(
        "leakage",
        0.94 if share > 0.1 else 0.71,
        f"{share:.0%} of val was trained on",
        tuple(told),
        "one place for each picture, and groups (--group) for pictures of one person, video or camera; `warmstart"
        " prepare` counts leaks; --write leaves the copies out of the training",
        "3D",
        {"copies": copies.num, "num_val": copies.num_val},
        data="drop copies",
    )


def _val_and_test(history: History) -> tuple[float, float] | None:
    assert history.run is not None, "asked for a run only"
    found = {gain["split"]: gain["best"].get(history.metric) for gain in history.run.gains}
    val, test = found.get("val"), found.get("test")
    return None if val is None or test is None else (val, test)


def collapsed(history: History, answers: Answers) -> Finding | None:
    """Classes that are hardly ever answered, though train has enough of them (rows 3D)."""
    matrix = _matrix(answers)
    support, said = matrix.sum(axis=1), matrix.sum(axis=0)
    recall = np.diagonal(matrix) / np.maximum(1, support)
    lost = np.flatnonzero((support >= _FEW) & (recall <= 0.05) & (said <= 0.1 * support))
    if not len(lost):
        return None
    names = [answers.classes[k] for k in lost.tolist()]
    most = int(said.argmax())
    return Finding(
        "collapsed",
        0.6,
        f"{len(lost)} of {len(support)} classes are never answered",
        (
            f"{listing(names, 6)}: {int(support[lost].sum())} val images, {int(said[lost].sum())} answers",
            f"{answers.classes[most]} is answered {said[most]} times for {support[most]} images",
        ),
        "look at the confusion matrix; classes that look alike may be one, rare ones need --sampler balanced, and"
        " after a rate that was too high some never come back",
        "3D, 1.29",
        {"classes": names},
        {"data.sampler": "balanced"},
    )


def _matrix(answers: Answers) -> NDArray[np.int64]:
    return confusion(answers.targets, answers.scores.argmax(axis=1), len(answers.classes))


def label_noise(history: History, answers: Answers) -> Finding | None:
    """Errors that are spread over all classes, and that the model is as sure of as of right answers (row 3G).

    Confident learning (Northcutt et al. 2021) counts labels that the model contradicts. A weak model contradicts many
    as well, but confuses few pairs of classes, and doubts its mistakes. One that knows nothing contradicts nearly all,
    whatever they are: it must be right clearly more often than twice by chance.
    """
    num, right = len(answers.classes), float((answers.scores.argmax(axis=1) == answers.targets).mean())
    if num < _LEAST_CLASSES or lower_end(right, len(answers.ids)) <= 2 / num:
        return None
    found = noise_numbers(answers)
    if found["share"] < 0.15 or found["spread"] < 0.9 or found["sure"] < 0.1:
        return None
    suspects, said = likely_mislabelled(answers.scores, answers.targets)
    named = [
        f"{answers.ids[row]} ({answers.classes[answers.targets[row]]}, rather {answers.classes[to]})"
        for row, to in zip(suspects.tolist()[:3], said.tolist()[:3], strict=True)
    ]
    return Finding(
        "label_noise",
        0.82,
        f"about {found['share']:.0%} of the labels look wrong",
        (
            f"{len(suspects)} of {len(answers.ids)} val labels contradict the model with confidence: {listing(named)}",
            f"mistakes are spread over the pairs of classes as chance would ({found['spread']:.0%} of its entropy);"
            " a model that is merely weak confuses few pairs",
            f"{found['sure']:.0%} of them are surer than the median right answer",
        ),
        "look at mislabelled.csv of `warmstart evaluate RUN --split val`; correct or drop those; until then label"
        " smoothing (Lukasik et al. 2020), and in a long training mixup (Zhang et al. 2018)",
        "3G",
        found,
        {"task.label_smoothing": 0.1},
    )


def noise_numbers(answers: Answers) -> dict[str, float]:
    """`share` of val labels that the model contradicts with confidence; `spread`: entropy of its mistakes over the
    pairs of classes, over that of as many mistakes drawn evenly (mean of 64 draws); `sure`: share of mistakes with a
    higher score than the median right answer."""
    matrix = _matrix(answers)
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    wrong = int(off.sum())
    suspects, _ = likely_mislabelled(answers.scores, answers.targets)
    top, right = answers.scores.max(axis=1), answers.scores.argmax(axis=1) == answers.targets
    drawn = np.random.default_rng(0).multinomial(wrong, np.full(len(off), 1 / len(off)), size=64)
    even = float(np.mean([_entropy(draw) for draw in drawn]))
    return {
        "share": len(suspects) / len(answers.ids),
        "spread": _entropy(off) / even if even > 0 else 0.0,
        "sure": float((top[~right] > np.median(top[right])).mean()) if wrong and right.any() else 0.0,
    }


def _entropy(counts: NDArray[np.int64]) -> float:
    """In nats, of counts as shares."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())
