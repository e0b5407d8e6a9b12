"""A layer's output is a map where it has the proportions of the image; whatever the layout."""

from __future__ import annotations

import pytest
import torch

from warmstart.analysis.explain.places import Layout, layout_of


@pytest.mark.parametrize(
    ("shape", "image", "grid", "wanted"),
    [
        ((2, 512, 7, 7), (224, 224), None, Layout("first", 7, 7)),
        ((2, 7, 7, 96), (224, 224), None, Layout("last", 7, 7)),
        ((2, 512, 12, 15), (360, 480), None, Layout("first", 12, 15)),
        ((2, 11, 15, 96), (360, 480), None, Layout("last", 11, 15)),
        ((2, 512, 1, 1), (224, 224), None, None),
        ((2, 512), (224, 224), None, None),
        ((2, 197, 192), (224, 224), (14, 14), Layout("tokens", 14, 14, 1)),
        ((2, 201, 192), (224, 224), (14, 14), Layout("tokens", 14, 14, 5)),
        ((2, 196, 192), (224, 224), (14, 14), Layout("tokens", 14, 14)),
        ((2, 49, 768), (224, 224), (56, 56), Layout("tokens", 7, 7)),
        ((2, 180, 192), (360, 480), (12, 15), Layout("tokens", 12, 15)),
        ((2, 77, 512), (224, 224), (32, 32), Layout("tokens", 8, 8, 13)),
        ((2, 12, 512), (32, 32), (4, 4), None),
        ((2, 197, 192), (224, 224), None, None),
        ((2, 3, 197, 197), (224, 224), None, Layout("first", 197, 197)),
    ],
)
def test_layouts(
    shape: tuple[int, ...], image: tuple[int, int], grid: tuple[int, int] | None, wanted: Layout | None
) -> None:
    assert layout_of(torch.Size(shape), image, grid) == wanted


def test_every_layout_becomes_the_same_map() -> None:
    maps = torch.rand(2, 5, 3, 4)
    tokens = torch.cat([torch.rand(2, 2, 5), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(Layout("first", 3, 4).to_map(maps), maps)
    assert torch.equal(Layout("last", 3, 4).to_map(maps.permute(0, 2, 3, 1)), maps)
    assert torch.equal(Layout("tokens", 3, 4, 2).to_map(tokens), maps)
