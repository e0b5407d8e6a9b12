from __future__ import annotations

import gzip

import numpy as np
import pytest

from warmstart.data.idx import read_idx
from warmstart.data.sources import open_source
from warmstart.errors import UserError

IMAGES = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("packed", [True, False])
def test_pairs_become_splits(write_idx, packed):
    write_idx("train", IMAGES, LABELS, packed)
    source = open_source(write_idx("t10k", IMAGES[:3], LABELS[:3], packed))
    assert source.classes == ("0", "1", "2")
    assert list(source.splits) == ["train", "test"]
    test = source.splits["test"]
    assert test.ids == ("t10k/00000", "t10k/00001", "t10k/00002")
    assert test.targets.tolist() == [0, 1, 2]
    assert (test.pixels.read(2)[..., 0] == IMAGES[2]).all()


def test_one_pair_is_split(write_idx):
    source = open_source(write_idx("t10k", IMAGES, LABELS))
    assert list(source.splits) == ["all"]
    assert source.notes == ("idx has t10k files only: they are split",)


def test_packed_and_unpacked_twins_are_one(write_idx):
    packed = open_source(write_idx("train", IMAGES, LABELS)).fingerprint
    root = write_idx("train", IMAGES, LABELS, packed=False)
    assert open_source(root).fingerprint == packed
    assert len(open_source(root).splits["all"]) == 6
    write_idx("train", IMAGES + np.uint8(1), LABELS, packed=False)
    assert open_source(root).fingerprint != packed


def test_a_missing_partner_is_named(write_idx):
    root = write_idx("train", IMAGES, LABELS)
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"has train-images-idx3-ubyte.gz but no train-labels file"):
        open_source(root)


def test_numbers_must_agree(write_idx):
    with pytest.raises(UserError, match=r"6 images, train-labels-idx1-ubyte.gz has 5 labels"):
        open_source(write_idx("train", IMAGES, LABELS[:5]))


def test_damaged_files_are_explained(write_idx):
    root = write_idx("train", IMAGES, LABELS, packed=False)
    path = root / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(UserError, match=r"has 129 bytes, its header promises 136 \(shape \(6, 4, 5\)\)"):
        open_source(root)
    path.write_bytes(b"\x89PNG" + content)
    with pytest.raises(UserError, match="not an IDX file of bytes: it begins with 89 50 4e 47"):
        open_source(root)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="it begins with nothing"):
        read_idx(path)


def test_damaged_gzip_is_explained(write_idx):
    path = write_idx("train", IMAGES, LABELS) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], gzip.compress(b"x")[:-4] + b"0000", b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            open_source(path.parent)


def test_shapes_and_classes_are_checked(write_idx):
    with pytest.raises(UserError, match="one class only"):
        open_source(write_idx("train", IMAGES, LABELS * 0))
    with pytest.raises(UserError, match=r"holds an array of shape \(6, 20\)"):
        open_source(write_idx("train", IMAGES.reshape(6, 20), LABELS))
    with pytest.raises(UserError, match="holds no images"):
        open_source(write_idx("train", IMAGES[:0], LABELS[:0]))


def test_two_data_sets_in_one_folder_are_refused(write_idx):
    write_idx("letters-train", IMAGES, LABELS)
    with pytest.raises(UserError, match="holds two data sets"):
        open_source(write_idx("digits-train", IMAGES, LABELS))
    write_idx("test", IMAGES, LABELS)


def test_two_test_sets_are_refused(write_idx):
    write_idx("test", IMAGES, LABELS)
    with pytest.raises(UserError, match="both t10k and test"):
        open_source(write_idx("t10k", IMAGES, LABELS))


@pytest.mark.shared
def test_fashion900(shared):
    source = open_source(shared / "fashion900")
    assert source.classes == tuple("0123456789")
    assert np.bincount(source.splits["train"].targets).tolist() == [60] * 10
    assert np.bincount(source.splits["test"].targets).tolist() == [30] * 10
    assert source.splits["train"].pixels.shape(0) == (28, 28, 1)


def test_labels_may_start_at_one(write_idx):
    """As those of EMNIST letters do."""
    root = write_idx("train", np.zeros((4, 4, 4)), np.array([1, 3, 2, 1]))
    write_idx("t10k", np.zeros((2, 4, 4)), np.array([2, 2]))
    source = open_source(root)
    assert source.classes == ("1", "2", "3")
    assert source.splits["train"].targets.tolist() == [0, 2, 1, 0]
    assert source.splits["test"].targets.tolist() == [1, 1]
    assert source.notes == ("the labels of idx start at 1, not at 0",)
    write_idx("train", np.zeros((4, 4, 4)), np.array([1, 4, 2, 1]))
    assert open_source(root).classes == ("0", "1", "2", "3", "4")
