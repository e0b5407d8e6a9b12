"""Small frozen records that cross floors, and how their values become JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

RETAIN = "retain"  # the split of rows about what must not be forgotten
TASK_HEAD = "head:"  # what the blocks of the heads of several tasks start with


def finite(value: Any) -> Any:
    """The same value for JSON, which has no word for NaN and infinity: they become None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a model's input: the same record in training, evaluation and prediction.

    `image_size` is (height, width) in pixels; `mean` and `std` are per channel, for pixels in [0, 1];
    `crop_pct` is the share of the resized image that the centre crop keeps (timm's word). `stretch`: both sides
    are resized to their size, by Pillow's bilinear filter, instead of keeping the aspect ratio.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875
    stretch: bool = False

    @property
    def num_channels(self) -> int:
        return len(self.mean)

    @property
    def resize_size(self) -> tuple[int, int]:
        """(height, width) that an image is resized to cover before the centre crop."""
        height, width = self.image_size
        return math.floor(height / self.crop_pct + 0.5), math.floor(width / self.crop_pct + 0.5)


@dataclass(frozen=True)
class Margin:
    """A margin head: logits are `scale` x (cosine with the class's weight - margin) in training, and `eval_scale` x
    cosine, without margin, everywhere else. `method` is cosface (the margin is of the cosine) or arcface (of the angle,
    in radians).
    """

    method: str
    margin: float
    scale: float
    eval_scale: float


@dataclass(frozen=True)
class Decision:
    """How a binary classifier answers: with its `positive` class from the score `threshold` on.

    `threshold` None: with the class of the higher score. `rule` is by what it was chosen on val; None: it was given.
    """

    positive: str
    threshold: float | None = None
    rule: str | None = None

    @property
    def for_other_weights(self) -> Decision:
        """What of it holds for other weights: the class, and a threshold that was given."""
        return self if self.rule is None else Decision(self.positive)

    @property
    def origin(self) -> str:
        return "given" if self.rule is None else f"{self.rule}, chosen on the run's val split"


@dataclass(frozen=True)
class Thresholds:
    """From which score on a multi-label model gives each label, in the order of its classes: chosen on a run's val."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of a model: what they are, and at which layers. `models/adapters/layers.py` says what they do.

    `kind` is lora, rslora or dora; `targets` are paths of layers; `bits` are those of the base's weights (None: all).
    """

    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    bits: int | None = None

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) (rslora)."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Lora:
        """Inverse of `asdict`. Raises TypeError or KeyError for anything else."""
        return cls(**{**values, "targets": tuple(values["targets"])})

    def fits(self, other: Lora) -> bool:
        """Whether the tensors of one mean the same as the other's: dropout is none of their business."""
        return replace(self, dropout=other.dropout) == other


@dataclass(frozen=True)
class Base:
    """What adapters were trained on: `kind` (file, pretrained, random, object) and `path` of the weights.

    `sha256` is of its tensors (models/adapters/files.identity); None where nobody has asked yet. `file_sha256` is of
    the file as it lies on disk.
    """

    kind: str
    path: str | None
    sha256: str | None = None
    file_sha256: str | None = None


@dataclass(frozen=True)
class TaskHead:
    """The head of one of several tasks on a backbone. `kind` is labels, multi-label or masks; `path` is its layer's.

    `pooled` is the module whose output it takes, averaged over its places, where the model itself gives masks.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    path: str
    pooled: str | None = None


@dataclass(frozen=True)
class Tasks:
    """All heads of a model of several tasks; `head` is the path of the classifier that they stand in place of."""

    head: str
    heads: tuple[TaskHead, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(head.name for head in self.heads)

    def find(self, name: str) -> TaskHead | None:
        return next((head for head in self.heads if head.name == name), None)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tasks:
        """Inverse of `asdict`. Raises TypeError or KeyError for anything else."""
        return cls(
            values["head"],
            tuple(TaskHead(**{**head, "classes": tuple(head["classes"])}) for head in values["heads"]),
        )


@dataclass(frozen=True)
class Edit:
    """One change of a model's layers. `kind` is resize, factorise, sparse or quantised: models/recipe.py does them.

    `layers` says what becomes of the layer at each path. `shapes` are those of tensors that got smaller, where a side
    that is None stays as the model has it: the rows of a classifier follow the classes, a stem's channels the images.
    """

    kind: str
    layers: Mapping[str, Any]
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What was made of a zoo's model, in order: with it, its name says the architecture of a compressed one."""

    edits: tuple[Edit, ...]

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(edit.kind for edit in self.edits)

    def then(self, edit: Edit) -> Recipe:
        return Recipe((*self.edits, edit))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """Inverse of `asdict`. Raises AttributeError, TypeError or KeyError for anything else."""
        edits = []
        for edit in values["edits"]:
            shapes = {name: tuple(sides) for name, sides in edit["shapes"].items()}
            edits.append(Edit(str(edit["kind"]), dict(edit["layers"].items()), shapes))
        return cls(tuple(edits))


@dataclass(frozen=True)
class Block:
    """One row of a model from stem to head: the unit that is frozen, given a rate, or unfrozen.

    `modules` are paths of subtrees that belong to this block alone; every parameter and buffer of
    the model is named in exactly one block. `adapters` are those of its parameters that low-rank adapters brought;
    `num_four_bit` weights are not among them, but among the buffers, in 4 bits.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    modules: tuple[str, ...]
    norms: tuple[str, ...]  # paths of modules that keep running statistics
    adapters: tuple[str, ...] = ()
    num_four_bit: int = 0


@dataclass(frozen=True)
class DatasetFacts:
    """What was counted while reading a data set; written to resolved.json."""

    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # split -> class -> number of images that have it
    sizes: dict[str, int]  # split -> number of images
    heights: tuple[int, int, int]  # smallest, median, largest, in pixels
    widths: tuple[int, int, int]
    num_channels: int  # 1 where every image is grey, else 3
    quarantined: tuple[tuple[str, str], ...] = ()  # (id, reason)
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    ignore: int | None = None  # the id of index masks that belongs to no class; None without masks
    pixels: dict[str, int] | None = None  # class, or (ignored) -> pixels of the training images' masks

    def num_samples(self, split: str) -> int:
        return self.sizes.get(split, 0)
