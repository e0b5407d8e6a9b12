from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from warmstart.data.sources import open_source
from warmstart.errors import UserError

FULL = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test/cat": 1, "test/dog": 2}


def test_split_folders(write_folders):
    source = open_source(write_folders(FULL))
    assert source.classes == ("cat", "dog")
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 5,
        "val": 2,
        "test": 3,
    }
    assert source.splits["train"].ids[:2] == ("train/cat/0.png", "train/cat/1.png")
    assert source.splits["test"].targets.tolist() == [0, 1, 1]
    assert source.notes == ()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val"])
def test_split_names_have_synonyms(write_folders, name):
    source = open_source(write_folders({"training/a": 1, "training/b": 1, f"{name}/a": 1, f"{name}/b": 1}))
    assert list(source.splits) == ["train", "val"]
    assert source.splits["val"].ids == (f"{name}/a/0.png", f"{name}/b/0.png")


def test_one_folder_of_classes_is_one_split(write_folders):
    source = open_source(write_folders({"cat": 2, "dog": 3, "test": 1}))
    assert source.classes == ("cat", "dog", "test")  # a class may bear the name of a split
    assert {split: len(samples) for split, samples in source.splits.items()} == {"all": 6}


def test_train_may_be_a_class(write_folders):
    assert open_source(write_folders({"car": 1, "plane": 1, "train": 1})).classes == ("car", "plane", "train")


def test_a_single_split_folder_is_split(write_folders):
    source = open_source(write_folders({"train/cat": 2, "train/dog": 2}))
    assert list(source.splits) == ["all"]
    assert source.splits["all"].ids[0] == "train/cat/0.png"
    assert "train folder only" in source.notes[0]


def test_hidden_and_foreign_files_are_passed_over_and_said(write_folders):
    root = write_folders({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1, "extra": 1})
    for place in (
        ".ipynb_checkpoints",
        "train/.ipynb_checkpoints",
        "train/cat/.ipynb_checkpoints",
        "__MACOSX",
    ):
        (root / place).mkdir()
        shutil.copy(root / "train/cat/0.png", root / place / "0.png")
    (root / "train/cat/._0.png").write_bytes(b"apple")
    (root / "train/cat/notes.txt").write_text("hello")
    source = open_source(root)
    assert source.classes == ("cat", "dog")
    assert len(source.splits["train"]) == 4
    notes = "\n".join(source.notes)
    assert "data/extra is not a split folder and was ignored" in notes
    assert "ignored 5 hidden: " in notes
    assert "1 files that are not images in class folders: notes.txt" in notes


def test_images_may_lie_deeper(write_folders):
    source = open_source(write_folders({"cat/big": 2, "cat/small": 1, "dog": 1}))
    assert source.splits["all"].ids[:3] == ("cat/big/0.png", "cat/big/1.png", "cat/small/0.png")
    assert source.splits["all"].targets.tolist() == [0, 0, 0, 1]


def test_links_back_are_followed_once(write_folders):
    root = write_folders({"cat": 2, "dog": 1})
    try:
        (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    assert len(open_source(root).splits["all"]) == 3


def test_the_fingerprint_follows_names_and_sizes(write_folders, tmp_path):
    root = write_folders({"cat": 2, "dog": 1})
    before = open_source(root).fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert open_source(moved).fingerprint == before
    (moved / "cat/0.png").write_bytes((moved / "cat/0.png").read_bytes() + b"!")
    assert open_source(moved).fingerprint != before
    (root / "cat/0.png").rename(root / "cat/9.png")
    assert open_source(root).fingerprint != before


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dogs": 1},
            "val has no 'dog' .train has.. Did you mean 'dogs'",
        ),
        (
            {"train/cat": 1, "train/dogs": 1, "val/cat": 1, "val/dog": 1, "val/eel": 1},
            "train has no 'eel' .val has",
        ),
        ({"cat": 1}, "one class only: cat"),
        ({"train/cat": 1, "val/cat": 1}, "has one class only: cat"),
        ({"cat": 2, "dog": 0}, "class folders without images: .*dog"),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 0}, "without images: .*dog"),
        ({"train": 3, "test": 2}, "train holds 3 images but no class folders"),
        ({"train": 3, "test1": 2}, "train holds 3 images but no class folders"),
        ({"": 3}, "holds 3 images but no class folders"),
        ({"": 0}, "is empty"),
        ({"val/a": 1, "val/b": 1, "dev/a": 1, "dev/b": 1}, "several val folders: dev, val"),
    ],
)
def test_what_is_no_data_set_is_explained(write_folders, layout, message):
    root = write_folders(layout)
    root.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        open_source(root)


def test_one_level_too_high_is_told(write_folders):
    root = write_folders({"zoo/cat": 1, "zoo/dog": 1})
    with pytest.raises(UserError, match=r"if the data lie one level deeper: --data .*zoo"):
        open_source(root)


def test_a_class_of_other_files_says_what_it_holds(write_folders):
    root = write_folders({"cat": 1, "dog": 0})
    (root / "dog" / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found 1.heic(.|\n)*known endings are .*\.jpg"):
        open_source(root)


def test_the_order_is_of_names_not_of_the_file_system(tmp_path, write_folders):
    root = write_folders({"b": 3, "a": 3})
    ids = open_source(root).splits["all"].ids
    assert list(ids) == sorted(ids)
    assert open_source(Path(str(root) + "/")).splits["all"].ids == ids


@pytest.mark.shared
def test_dogcat(shared):
    source = open_source(shared / "dogcat")
    assert source.classes == ("cat", "dog")
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 978,
        "val": 211,
        "test": 210,
    }
    every = np.concatenate([samples.keys for samples in source.splits.values()])
    assert len(np.unique(every)) == 1399


def test_names_that_are_not_utf8_become_printable(write_folders, tmp_path):
    root = write_folders({"cat": 2, "dog": 2})
    shutil.copy(root / "cat" / "0.png", os.fsencode(root / "cat") + b"/caf\xe9.png")
    (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/d\xf6g"))
    source = open_source(root)
    assert source.classes == ("cat", r"d\xf6g")
    samples = source.splits["all"]
    assert r"cat/caf\xe9.png" in samples.ids
    assert all(samples.pixels.read(index).shape == (8, 8, 3) for index in range(5))
    "\n".join([*samples.ids, *source.classes, *source.notes]).encode()
    plain = write_folders({"x/é": 1, "x/b": 1})
    assert open_source(plain / "x").classes == ("b", "é")
