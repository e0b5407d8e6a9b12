"""What every zoo hands over, and the question all of them ask of a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from warmstart.errors import UserError
from warmstart.models.image_text.processor import Tokens
from warmstart.models.image_text.prompts import CONTRASTIVE, LINEAR, ClassTexts
from warmstart.records import Preprocessing

Shape = tuple[int, ...]
# Patch embeddings and convolutional stems of transformers have at most four spatial convolutions.
_MAX_STEM_CONVOLUTIONS = 4


@dataclass(frozen=True)
class Wanted:
    """What is asked of a new model; None stands for the model's own default."""

    num_classes: int | None = None
    dropout: float | None = None
    pretrained: bool = False
    in_channels: int | None = None
    image_size: tuple[int, int] | None = None  # (height, width) in pixels
    texts: ClassTexts | None = None  # of an image-text model whose head is made of texts
    runs_there: bool = False  # a model of this name was saved after it had run at `image_size`


@dataclass(frozen=True)
class TextPart:
    """What became of the text tower of an image-text model: see models/image_text/.

    `processor` are the files of its tokenizer and image processor, by name. `loss` is that of contrastive tuning (None:
    another head), `by_text` what the classifier's rows were made of now (None: not of texts). `read` makes tokens of
    texts; it raises UserError where there is no tokenizer. `prompts` are the texts of each class that the
    classifier was made of, at first or now.
    """

    head: str
    processor: Mapping[str, bytes]
    loss: str | None
    by_text: str | None
    read: Callable[[Sequence[str]], Tokens]
    prompts: Mapping[str, tuple[str, ...]]

    @property
    def dropped(self) -> str | None:
        """In words; None: the tower is kept."""
        if self.head == CONTRASTIVE:
            return None
        if self.head == LINEAR:
            return "the text tower is dropped; the head is linear in the pooled output of the image tower"
        made = "rows that it gave before" if self.by_text is None else self.by_text
        return f"the text tower is dropped; the classifier starts from {made}"


@dataclass(frozen=True)
class Created:
    """A model and what its zoo knows about it."""

    module: nn.Module
    head: str  # dotted path of the classifier layer
    preprocessing: Preprocessing
    licence: str | None  # of the pretrained weights
    channels_last: bool
    classes: tuple[str, ...] | None  # of the pretrained classifier, in output order; () without one
    origin: str | None  # full name of the pretrained weights, for the record
    training_only: tuple[str, ...] = ()  # prefixes of tensors that files have and the module leaves out
    notes: tuple[str, ...] = ()  # what was assumed of it
    segments: bool = False  # its outputs are (N, K, H, W): scores of every pixel
    head_block: str | None = None  # path of all that counts as head, where that is more than the classifier
    text: TextPart | None = None  # of an image-text model


@dataclass(frozen=True)
class Outline:
    """What must be known of an architecture before a file of its weights can be read.

    `shapes` are those of every tensor of the model made for two classes and for `image_size`.
    """

    head: str
    first_conv: str | None  # path of the convolution that takes the image's channels
    fixed_size: bool  # position embeddings or windows tie the weights to an image size
    shapes: Mapping[str, Shape]
    image_size: tuple[int, int] | None  # (height, width) in pixels
    segments: bool = False
    encoder: str | None = None  # prefix of what a file of the encoder alone holds, in segmentation models
    training_only: tuple[str, ...] = ()  # prefixes of tensors that files have and the module leaves out
    has_pair: bool = False  # one row of the classifier stands for two classes (heads.PairLinear)

    @property
    def stem_shape(self) -> Shape | None:
        """(outputs, image channels, height, width) of the first convolution."""
        return self.shapes.get(f"{self.first_conv}.weight")


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def is_convolutional(module: nn.Module) -> bool:
    """Whether the module computes fastest with channels last."""
    spatial = [m for m in module.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return len(spatial) > _MAX_STEM_CONVOLUTIONS


def check_in_channels(name: str, wanted: Wanted, own: int) -> None:
    """Raises UserError where other input channels are asked for than a model has, which cannot be rebuilt for them."""
    if wanted.in_channels not in (None, own):
        needed = f"{own} channel{'s' * (own > 1)}"
        raise UserError(
            f"{name} takes {needed}, not {wanted.in_channels}",
            needed,
            "choose a timm model, which can take any number of channels",
        )


def with_stated(default: Preprocessing, stated: Mapping[str, Any], name: str) -> Preprocessing:
    """The model's own, with what was stated; a single mean or std stands for every channel."""
    channels = default.num_channels
    chosen = dict(stated)
    for key in ("mean", "std"):
        if key in chosen:
            values = tuple(chosen[key])
            if len(values) not in (1, channels):
                raise UserError(
                    f"{key} has {len(values)} values, but {name} takes {channels} channel(s)",
                    f"1 or {channels} values",
                    f"--{key} {','.join(['0.5'] * channels)}",
                )
            chosen[key] = values * channels if len(values) == 1 else values
    return replace(default, **chosen)
