"""How the output of a layer lies over the image: a map in one of three layouts, found by shapes alone.

Shapes: N images of H x W pixels, h x w places of a map, C channels, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_AREAS, _TOKENS = 4, 3  # axes


@dataclass(frozen=True)
class Layout:
    """`kind` is first (N, C, h, w), last (N, h, w, C) or tokens (N, `prefix` + h w, C).

    The prefix are tokens without a place: class token, registers.
    """

    kind: str
    height: int
    width: int
    prefix: int = 0

    @property
    def num_places(self) -> int:
        return self.height * self.width

    def to_map(self, tensor: torch.Tensor) -> torch.Tensor:
        """The layer's output as (N, C, h, w); what belongs to no place is left out."""
        if self.kind == "first":
            return tensor
        if self.kind == "last":
            return tensor.permute(0, 3, 1, 2)
        places = tensor[:, self.prefix :].transpose(1, 2)
        return places.reshape(*places.shape[:2], self.height, self.width)

    def __str__(self) -> str:
        return f"{self.height} x {self.width} places"


def layout_of(
    shape: torch.Size, image: tuple[int, int], grid: tuple[int, int] | None = None
) -> Layout | None:
    """How a tensor of this shape lies over images of H x W; None where it is no map of at least two places.

    A map has the proportions of the image, to a place. `grid` is that of the last map before it: tokens have it, or a
    half, a quarter, ... of it where stages merge them. Where channels could be places too, they stand in front.
    """
    if len(shape) == _AREAS:
        for kind, (height, width) in (("first", shape[2:]), ("last", shape[1:3])):
            if _fits(height, width, image):
                return Layout(kind, height, width)
    if len(shape) == _TOKENS and grid is not None:
        height, width = grid
        while height * width > shape[1]:
            height, width = -(-height // 2), -(-width // 2)
            if (height, width) == (1, 1):
                return None
        prefix = shape[1] - height * width
        if _fits(height, width, image) and prefix < height * width:
            return Layout("tokens", height, width, prefix)
    return None


def _fits(height: int, width: int, image: tuple[int, int]) -> bool:
    """Whether so many places could come of the image by one stride on both sides, rounded up or down."""
    is_map = height * width > 1 and height <= image[0] and width <= image[1]
    return is_map and abs(height * image[1] - width * image[0]) <= sum(image)
