"""Models of our own: a plain dict from name to how to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from warmstart.config.ocec import FAMILY, OcecShape, is_ocec, shape_of
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.models.builtin.microsegformer import MicroSegFormer
from warmstart.models.builtin.ocec import Ocec, classifier_of
from warmstart.models.builtin.ocec_files import MARGIN_HEAD, shape_by
from warmstart.records import Preprocessing


@dataclass(frozen=True)
class Builtin:
    """How to make a model, where its classifier is, and how its pixels are prepared."""

    make: Callable[..., nn.Module]  # (num_classes, dropout)
    num_classes: int
    dropout: float
    head: str
    preprocessing: Preprocessing
    segments: bool = False  # its outputs are (N, K, H, W)
    channels_last: bool = False  # computes fastest in this layout, as measured
    head_block: str | None = None  # path of all that counts as head, where that is more than the classifier
    training_only: tuple[str, ...] = ()  # prefixes of tensors that files have and the module leaves out


# The document's files were trained on pixels in [0, 1].
_FACES = Preprocessing((512, 512), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
# The mean and deviation are MNIST's: the document's file was trained with them.
BUILTINS = {
    "fashion_cnn": Builtin(
        FashionCNN, 10, 0.3, "fc2", Preprocessing((28, 28), (0.1307,), (0.3081,), crop_pct=1.0)
    ),
    "microsegformer": Builtin(MicroSegFormer, 19, 0.15, "decoder.conv_seg", _FACES, True, True),
    "microsegformer_nolmsa": Builtin(
        partial(MicroSegFormer, lmsa=False), 19, 0.15, "decoder.conv_seg", _FACES, True, True
    ),
}

# The document's program trains on pixels in [0, 1] and resizes without keeping the aspect ratio.
_EYES = Preprocessing((48, 48), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0, stretch=True)
NAMES = (*BUILTINS, FAMILY)


def is_builtin(bare: str) -> bool:
    return bare in BUILTINS or is_ocec(bare)


def builtin(bare: str) -> Builtin:
    """The model of a name. Raises UserError for a variant that there is none of."""
    return _ocec(shape_of(bare)) if is_ocec(bare) else BUILTINS[bare]


def _ocec(shape: OcecShape) -> Builtin:
    has_margin = bool(shape.margin)
    return Builtin(
        partial(Ocec, shape),
        2,
        0.3,
        classifier_of(shape),
        _EYES,
        head_block=None if has_margin else "head",
        training_only=("head.",) if has_margin else (f"{MARGIN_HEAD}.",),
    )


def recognise(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """`builtin:NAME` if these are exactly its keys and, but for the classifier's rows, its shapes."""
    shapes = {key: shapes[key] for key in keys}
    for name, spec in BUILTINS.items():
        if _is_whole(shapes, spec):
            return f"builtin:{name}"
    shape = shape_by(shapes)
    return f"builtin:{shape.name}" if shape is not None and _is_whole(shapes, _ocec(shape)) else None


def _is_whole(shapes: Mapping[str, tuple[int, ...]], spec: Builtin) -> bool:
    """Whether these are the model's tensors, with nothing beside them but what only training needs."""
    with torch.device("meta"):
        wanted = {key: tuple(t.shape) for key, t in spec.make(2, 0.0).state_dict().items()}
    found = {key for key in shapes if not key.startswith(spec.training_only)}
    return found == set(wanted) and all(_same(key, shapes[key], wanted[key], spec.head) for key in wanted)


def _same(key: str, found: tuple[int, ...], wanted: tuple[int, ...], head: str) -> bool:
    """Equal shapes; a classifier may have any number of rows."""
    return found[1:] == wanted[1:] if key.startswith(f"{head}.") else found == wanted
