"""The maps of the chosen images, and what the layers make of one of them.

Shapes: H x W the model's input in pixels, h x w places of a map, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from warmstart.analysis.explain.attention import rollout
from warmstart.analysis.explain.cases import Case
from warmstart.analysis.explain.grad_cam import grad_cam, score_of
from warmstart.analysis.explain.layers import Layer, block_modules, find_layer, layouts, watched
from warmstart.analysis.explain.subject import Subject
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel

GRAD_CAM, ROLLOUT = "grad-cam", "rollout"
_NUM_FILTERS, _NUM_BLOCKS, _NUM_CHANNELS = 64, 6, 8


@dataclass(frozen=True, eq=False)
class Heat:
    """One map (h, w) of an image, of a class, or (rollout) of none.

    `region` (H, W) are the pixels explained: those that the class was given, or of a `missed` one, which was given
    none, those that the mask has of it.
    """

    method: str
    name: str | None
    values: NDArray[np.float32]
    region: NDArray[np.bool_] | None = None
    missed: bool = False

    @property
    def words(self) -> str:
        nothing = "" if self.values.max() > 0 else ", nothing"
        head = "missed, mask" if self.missed else self.method
        return (head if self.name is None else f"{head}: {self.name}") + nothing

    @property
    def peak(self) -> tuple[float, float]:
        """(x, y) of the middle of the hottest place, as shares of the image's sides."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        height, width = self.values.shape
        return (float(column) + 0.5) / width, (float(row) + 0.5) / height

    def to_json(self) -> dict[str, Any]:
        peak = [round(share, 4) for share in self.peak] if self.values.max() > 0 else None
        numbers = {"peak_xy": peak, "max": float(self.values.max())}
        return {"method": self.method, "class": self.name, "missed": self.missed, **numbers}


@dataclass(frozen=True, eq=False)
class Look:
    """An image as the model takes it, uint8 (H, W, C), with its maps."""

    case: Case
    id: str
    image: NDArray[np.uint8]
    heats: tuple[Heat, ...]


def choose_layer(subject: Subject, case: Case, path: str | None) -> Layer:
    """The layer whose maps are drawn: see `find_layer`. The first case is tried, of masks all pixels: its class may be
    given to none."""
    built, inputs = subject.restored.built, subject.inputs()(subject.batch(case.place).images)
    pixels = torch.ones((1, *inputs.shape[2:]), dtype=torch.bool) if built.segments else None
    return find_layer(built, inputs, score_of(built, case.classes[0], pixels), path)


def look_at(subject: Subject, case: Case, layer: Layer, methods: Sequence[str]) -> Look:
    """All maps of a case. The answer of one of masks is what most pixels of its class were given.

    Raises:
        UserError: rollout of a model without attention between all places.
    """
    built, batch = subject.restored.built, subject.batch(case.place)
    inputs = subject.inputs()(batch.images)
    answers = _pixel_answers(built, inputs) if built.segments else None
    masks = None
    if answers is not None and subject.targets is not None:
        masks = torch.from_numpy(batch.targets).to(inputs.device)
        most = answers[masks == case.classes[0]].mode().values
        case = replace(case, answer=built.classes[int(most)])
    heats = []
    if GRAD_CAM in methods:
        for number in case.classes:
            region = None if answers is None else answers == number
            missed = region is not None and masks is not None and not bool(region.any())
            region = masks == number if missed and masks is not None else region
            values = grad_cam(built.module, layer, inputs, score_of(built, number, region))[0]
            drawn = None if region is None else region[0].cpu().numpy()
            heats.append(Heat(GRAD_CAM, built.classes[number], values.float().cpu().numpy(), drawn, missed))
    if ROLLOUT in methods:
        values = rollout(built.module, layer, inputs, built.name)[0]
        heats.append(Heat(ROLLOUT, None, values.float().cpu().numpy()))
    return Look(case, subject.ids[case.place], batch.images[0].copy(), tuple(heats))


def _pixel_answers(built: BuiltModel, inputs: torch.Tensor) -> torch.Tensor:
    """(1, H, W), int64: the class that every pixel of an image is given."""
    with torch.no_grad():
        return F.interpolate(built.module(inputs), inputs.shape[2:], mode="bilinear").argmax(dim=1)


def first_filters(built: BuiltModel, inputs: torch.Tensor) -> tuple[str, NDArray[np.float32]]:
    """The first convolution's path, and its strongest filters scaled to [0, 1] with 0 at .5: (n, h, w, 3) where the
    image has three channels, else (n, h, w), the mean over channels.

    UserError: a model without a convolution.
    """
    convolutions = [path for path, part in built.module.named_modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad(), watched(built.module, convolutions) as outputs:
        built.module(inputs)
    if not outputs:
        raise UserError(
            f"filters: {built.name} has no convolution",
            "a model whose first layer is one",
            "another --method",
        )
    path = next(iter(outputs))
    weights = built.module.get_parameter(f"{path}.weight").detach().float().cpu().permute(0, 2, 3, 1).numpy()
    weights = weights if weights.shape[3] == 3 else weights.mean(axis=3)
    lengths = np.abs(weights).reshape(len(weights), -1)
    strongest = np.argsort(-np.square(lengths).sum(axis=1), kind="stable")[:_NUM_FILTERS]
    largest = np.maximum(lengths[strongest].max(axis=1), 1e-12)
    return path, 0.5 + weights[strongest] / (2 * largest.reshape(-1, *[1] * (weights.ndim - 1)))


def activation_maps(built: BuiltModel, inputs: torch.Tensor) -> list[tuple[str, NDArray[np.float32]]]:
    """Of one image: (block and its places, maps (n, h, w) in [0, 1]) from stem to end, of the channels that differ
    most over the image.

    UserError: no block gives a map.
    """
    convolutions = [path for path, part in built.module.named_modules() if isinstance(part, nn.Conv2d)]
    owners = {path: block.name for block in built.blocks[:-1] for path in block_modules(built.module, block)}
    # Twice, so that windows of one image are not taken for images.
    image = torch.cat([inputs[:1], inputs[:1]])
    with torch.no_grad(), watched(built.module, dict.fromkeys([*owners, *convolutions])) as outputs:
        built.module(image)
    found = {}
    for path, layout in layouts(built.module, image, outputs).items():
        if path in owners:
            found[owners[path]] = layout, layout.to_map(outputs[path])[0].float().cpu().numpy()
    if not found:
        raise UserError(
            f"activations: no block of {built.name} gives a map over the image", "another --method"
        )
    names = list(found)
    chosen = dict.fromkeys(names[i] for i in np.linspace(0, len(names) - 1, _NUM_BLOCKS).round().astype(int))
    return [(f"{name}: {found[name][0]}", _most_varied(found[name][1])) for name in chosen]


def _most_varied(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, h, w) -> those of the largest deviation, each from its smallest value (0) to its largest (1)."""
    chosen = maps[np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:_NUM_CHANNELS]]
    low, high = (f(axis=(1, 2), keepdims=True) for f in (chosen.min, chosen.max))
    return np.asarray((chosen - low) / np.maximum(high - low, 1e-12), np.float32)
