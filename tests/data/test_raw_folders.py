"""Class folders as they were collected are read at any depth, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart.data.raw_folders import open_raw_folders
from warmstart.errors import UserError


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / name)


def labels(root: Path, innermost: bool = False) -> dict[str, str]:
    source = open_raw_folders(root, innermost)
    return {
        name: source.classes[code]
        for samples in source.splits.values()
        for name, code in zip(samples.ids, samples.targets.tolist(), strict=True)
    }


def test_the_first_folder_is_the_class_or_the_innermost_one(tmp_path: Path) -> None:
    write(tmp_path, "day1/cat/1.png", "day1/dog/1.png", "day2/cat/1.png", "day2/owl/x/1.png")
    assert set(labels(tmp_path).values()) == {"day1", "day2"}
    notes = open_raw_folders(tmp_path).notes
    assert any(
        "4 images lie deeper (day1/cat/1.png): the class is the first folder, day1" in n for n in notes
    )
    assert labels(tmp_path, innermost=True) == {
        "day1/cat/1.png": "cat",
        "day1/dog/1.png": "dog",
        "day2/cat/1.png": "cat",
        "day2/owl/x/1.png": "x",
    }
    assert not any("deeper" in note for note in open_raw_folders(tmp_path, innermost=True).notes)


def test_a_folder_of_class_folders_alone_is_passed_through(tmp_path: Path) -> None:
    """As Stanford Dogs' archive has it: Images/n02085620-Chihuahua/1.jpg."""
    write(tmp_path, "dogs/Images/n1-pug/1.png", "dogs/Images/n2-boxer/1.png")
    source = open_raw_folders(tmp_path)
    assert source.classes == ("n1-pug", "n2-boxer")
    assert source.splits["all"].ids == ("dogs/Images/n1-pug/1.png", "dogs/Images/n2-boxer/1.png")
    assert "the class folders are in dogs/Images" in source.notes


def test_split_folders_are_no_classes(tmp_path: Path) -> None:
    """Classes may differ between them: they are divided anew."""
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/owl/1.png")
    source = open_raw_folders(tmp_path)
    assert source.classes == ("cat", "dog", "owl")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 2, "test": 2}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "dog/1.png", "loose.png", ".hidden/1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "read.me").write_text("words")
    notes = " | ".join(open_raw_folders(tmp_path).notes)
    assert set(labels(tmp_path)) == {"cat/1.png", "dog/1.png"}
    for told in ("1 images lie in no class folder and are left out: loose.png", "left out: empty", "read.me"):
        assert told in notes


def test_images_without_any_folder_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match="holds 2 images, and none in a class folder"):
        open_raw_folders(tmp_path)


def test_equal_trees_have_equal_fingerprints(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, "cat/1.png", "dog/1.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8)).save(
        tmp_path / "c/cat/1.png"
    )
    prints = [open_raw_folders(tmp_path / name).fingerprint for name in ("a", "b", "c")]
    assert prints[0] == prints[1] != prints[2]
