from __future__ import annotations

import os

import pytest

from warmstart.data.sources import open_images, open_source
from warmstart.errors import UserError


def test_a_missing_path_names_its_neighbour(write_folders):
    root = write_folders({"dogcat/cat": 1, "dogcat/dog": 1})
    with pytest.raises(UserError, match=r"dogcta does not exist(.|\n)*Did you mean 'dogcat'"):
        open_source(root / "dogcta")
    with pytest.raises(UserError, match=r"Did you mean 'dogcat'"):
        open_source(root / "dogcta" / "train")
    with pytest.raises(UserError, match=r"holds: dogcat"):
        open_source(root / "zebra")


def test_a_file_is_not_a_data_set(write_folders, write_idx, tmp_path):
    root = write_folders({"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"0.png is a file(.|\n)*give the folder that holds it: --data .*cat"):
        open_source(root / "cat" / "0.png")
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack it"):
        open_source(tmp_path / "data.zip")


def test_a_folder_of_other_things(tmp_path):
    (tmp_path / "cifar.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cifar.parquet cannot be read: (.|\n)*download the file again"):
        open_source(tmp_path)
    (tmp_path / "cifar.parquet").rename(tmp_path / "cifar.pickle")
    with pytest.raises(UserError, match=r"holds no images: cifar.pickle(.|\n)*IDX files, CSV or parquet"):
        open_source(tmp_path)


def test_images_to_predict(write_folders, monkeypatch):
    root = write_folders({"cat": 2, "dog/deep": 1})
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    monkeypatch.chdir(root)
    samples = open_images(["dog", "cat/1.png", "cat", "dog/deep/0.png"])
    assert samples.ids == ("dog/deep/0.png", "cat/1.png", "cat/0.png")  # as written, each once
    assert samples.targets.tolist() == [-1, -1, -1]
    assert samples.pixels.read(0).shape == (8, 8, 3)


def test_nothing_to_predict(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        open_images([tmp_path])
    with pytest.raises(UserError, match="no images in an empty list"):
        open_images([])
    with pytest.raises(UserError, match="does not exist"):
        open_images([tmp_path / "x.jpg"])


def test_images_to_predict_whose_names_are_not_utf8(write_folders):
    root = write_folders({"a": 1})
    (root / "a" / "0.png").rename(os.fsdecode(os.fsencode(root / "a") + b"/caf\xe9.png"))
    samples = open_images([root])
    assert samples.ids == (f"{root}/a/caf\\xe9.png",)
    assert samples.pixels.read(0).shape == (8, 8, 3)
