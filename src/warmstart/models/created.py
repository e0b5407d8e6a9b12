"""What every zoo hands over, and the question all of them ask of a module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from warmstart.records import Preprocessing

# Patch embeddings and convolutional stems of transformers have at most four spatial convolutions.
_MAX_STEM_CONVOLUTIONS = 4


@dataclass(frozen=True)
class Created:
    """A model and what its zoo knows about it."""

    module: nn.Module
    head: str  # dotted path of the classifier layer
    preprocessing: Preprocessing
    licence: str | None  # of the pretrained weights
    channels_last: bool
    classes: tuple[str, ...] | None  # of the pretrained classifier, in output order
    origin: str | None  # full name of the pretrained weights, for the record
    training_only: tuple[str, ...] = ()  # prefixes of tensors that files have and the module leaves out


@dataclass(frozen=True)
class Outline:
    """What must be known of an architecture before a file of its weights can be read."""

    head: str
    first_conv: str | None  # path of the convolution that takes the image's channels
    fixed_size: bool  # position embeddings or windows tie the weights to an image size


def is_convolutional(module: nn.Module) -> bool:
    """Whether the module computes fastest with channels last."""
    spatial = [m for m in module.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return len(spatial) > _MAX_STEM_CONVOLUTIONS
