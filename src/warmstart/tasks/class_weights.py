"""Weights of the classes in the loss, from the setting to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from warmstart.errors import UserError, closest, listing

_EXPECTED_WEIGHTS = "balanced, or NAME=WEIGHT,... with weights that are numbers from 0 on"


def resolve_class_weights(
    setting: str | None, classes: Sequence[str], counts: Mapping[str, float], num_images: int | None = None
) -> tuple[float, ...] | None:
    """Weights in the order of `classes` from `task.class_weights`; `counts` are training images by class,
    or the places that they have in an epoch.

    `balanced` gives N / (K * count), which makes every class weigh the same in sum (King & Zeng 2001).
    Labels, of which each of `num_images` images has any number, are weighed where an image has them:
    `balanced` is then negatives / positives, which makes both sides of a label weigh the same in sum.
    `cat=2,dog=1` names weights, classes left out weigh 1; `none` is None. Raises one UserError with
    all problems.
    """
    if setting is None or setting.strip().lower() == "none":
        return None
    if setting.strip().lower() == "balanced":
        return _balanced(classes, counts) if num_images is None else _positive(classes, counts, num_images)
    weights, problems = _named_weights(setting, classes)
    if problems:
        raise UserError.of_problems(problems, "class_weights")
    resolved = tuple(weights.get(name, 1.0) for name in classes)
    if not any(resolved):
        raise UserError(
            f"class_weights = {setting!r} gives every class a weight of 0: there would be nothing to learn",
            "at least one class with a weight above 0",
            "raise a weight, or leave class_weights out",
        )
    return resolved


def _balanced(classes: Sequence[str], counts: Mapping[str, float]) -> tuple[float, ...]:
    empty = [name for name in classes if not counts.get(name)]
    if empty:
        raise UserError(
            f"class_weights = 'balanced', but there are no training images of {listing(map(repr, empty))}",
            "at least one training image of every class",
            "add images, raise --limit, or name the weights (cat=2,dog=1)",
        )
    total = sum(counts[name] for name in classes)
    return tuple(total / (len(classes) * counts[name]) for name in classes)


def _positive(classes: Sequence[str], counts: Mapping[str, float], num_images: int) -> tuple[float, ...]:
    one_sided = [name for name in classes if not 0 < counts.get(name, 0) < num_images]
    if one_sided:
        raise UserError(
            f"class_weights = 'balanced', but none or all of the {num_images} training images have "
            f"{listing(map(repr, one_sided))}",
            "training images with and without every label",
            "add images, raise --limit, or name the weights (cat=2,dog=1)",
        )
    return tuple((num_images - counts[name]) / counts[name] for name in classes)


def _named_weights(setting: str, classes: Sequence[str]) -> tuple[dict[str, float], list[UserError]]:
    """Weights by class, and every problem found. The last `=` of an entry ends the name."""
    weights: dict[str, float] = {}
    problems: list[UserError] = []
    for entry in _entries(setting, classes):
        name, equals, number = (part.strip() for part in entry.rpartition("="))
        if not equals:
            problem = f"class_weights: {entry.strip()!r} is not NAME=WEIGHT"
            problems.append(UserError(problem, _EXPECTED_WEIGHTS, "write for example cat=2,dog=1"))
            continue
        weight = _weight(number)
        if name not in classes:
            hint = closest(name, classes) or "use the name of a class"
            problems.append(UserError(f"class_weights: no class is named {name!r}", listing(classes), hint))
        elif weight is None:
            problem = f"class_weights: {number!r} is no weight for {name!r}"
            problems.append(UserError(problem, "a finite number from 0 on", f"write for example {name}=2"))
        elif name in weights:
            problem = f"class_weights: {name!r} has two weights, {weights[name]:g} and {weight:g}"
            problems.append(UserError(problem, "one weight per class", "keep one of them"))
        else:
            weights[name] = weight
    return weights, problems


def _entries(setting: str, classes: Sequence[str]) -> list[str]:
    """The setting cut at commas, except at a comma that is part of a class name (`tench, Tinca tinca=2`)."""
    entries: list[str] = []
    for piece in setting.split(","):
        joined = f"{entries[-1]},{piece}" if entries else piece
        if entries and "=" not in entries[-1] and _could_begin(joined.rpartition("=")[0] or joined, classes):
            entries[-1] = joined
        else:
            entries.append(piece)
    return entries


def _could_begin(text: str, classes: Sequence[str]) -> bool:
    return any(name.startswith(text.strip()) for name in classes)


def _weight(text: str) -> float | None:
    """A finite number from 0 on, or None."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
