"""Models of our own: a plain dict from name to how to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.models.builtin.microsegformer import MicroSegFormer
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


def recognise(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """`builtin:NAME` if these are exactly its keys and, but for the classifier's rows, its shapes."""
    found = set(keys)
    for name, spec in BUILTINS.items():
        with torch.device("meta"):
            wanted = {key: tuple(t.shape) for key, t in spec.make(spec.num_classes, 0.0).state_dict().items()}
        if found == set(wanted) and all(_same(key, shapes[key], wanted[key], spec.head) for key in wanted):
            return f"builtin:{name}"
    return None


def _same(key: str, found: tuple[int, ...], wanted: tuple[int, ...], head: str) -> bool:
    """Equal shapes; a classifier may have any number of rows."""
    return found[1:] == wanted[1:] if key.startswith(f"{head}.") else found == wanted
