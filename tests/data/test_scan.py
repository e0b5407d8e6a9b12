from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from warmstart.data.samples import ArrayPixels, Samples
from warmstart.data.scan import read_sizes, scan
from warmstart.data.sources import open_source
from warmstart.errors import UserError


@pytest.fixture
def mixed(write_folders):
    """70 good images of two kinds, a truncated one and an empty one."""
    root = write_folders({"cat": 40, "dog": 30})
    Image.fromarray(np.zeros((5, 9), dtype=np.uint8)).save(root / "cat" / "grey.png")
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "empty.jpg").write_bytes(b"")
    return open_source(root).splits["all"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_image_is_looked_at(mixed, workers):
    seen = []
    result = scan(mixed, workers, lambda done, total: seen.append((done, total)))
    assert [name for name, _ in result.corrupt] == ["cat/half.png", "dog/empty.jpg"]
    assert result.corrupt[1][1] == "empty file (0 bytes)"
    assert len(result.good) == 71
    assert {mixed.ids[i] for i in range(len(mixed))} - {mixed.ids[i] for i in result.good} == {
        "cat/half.png",
        "dog/empty.jpg",
    }
    grey = mixed.ids.index("cat/grey.png")
    assert (result.heights[grey], result.widths[grey], result.channels[grey]) == (5, 9, 1)
    assert seen[-1] == (73, 73)
    assert seen == sorted(seen)


def test_headers_give_the_same_sizes(mixed):
    full = scan(mixed, 0)
    good = mixed.subset(full.good)
    sizes = read_sizes(good, 2)
    assert (sizes.heights == full.heights[full.good]).all()
    assert (sizes.widths == full.widths[full.good]).all()
    assert (sizes.channels == full.channels[full.good]).all()


def test_a_file_that_broke_since_is_named(mixed):
    with pytest.raises(UserError, match=r"dog/empty.jpg was readable when the run started and is not now"):
        read_sizes(mixed.subset(np.array([len(mixed) - 1])), 0)


def test_arrays_need_no_decoding():
    samples = Samples(
        ("a", "b"), np.zeros(2, dtype=np.int64), ArrayPixels(np.zeros((2, 4, 6), dtype=np.uint8))
    )
    seen = []
    result = scan(samples, 2, lambda done, total: seen.append((done, total)))
    assert result.heights.tolist() == [4, 4]
    assert result.widths.tolist() == [6, 6]
    assert result.channels.tolist() == [1, 1]
    assert result.corrupt == ()
    assert seen == [(2, 2)]


@pytest.mark.shared
def test_dogcat_is_whole(shared):
    samples = open_source(shared / "dogcat").splits["val"]
    result = scan(samples, 2)
    assert result.corrupt == ()
    assert len(result.good) == 211
    assert (result.channels == 3).all()
