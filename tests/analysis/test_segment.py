"""No mask is written over another, however its image was named."""

from __future__ import annotations

import pytest

from warmstart.analysis.segment import _file_names


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (("a/x.png",), ["x"]),
        (("a/x.png", "b/x.png"), ["a/x", "b/x"]),
        (("a/x.png", "a/x.jpg"), ["x.png", "x.jpg"]),
        (("a/x.png", "a/./x.png"), ["x.png", "x.png-2"]),
        (("/data/a/x.png", "/data/b/c/x.png"), ["a/x", "b/c/x"]),
    ],
)
def test_names_of_masks(ids: tuple[str, ...], names: list[str]) -> None:
    assert _file_names(ids) == names


def test_a_folder_above_is_told_from_one_here() -> None:
    names = _file_names(("a/x.png", "../a/x.png"))
    assert len(set(names)) == 2
