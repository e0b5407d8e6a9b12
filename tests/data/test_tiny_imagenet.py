"""Tiny ImageNet as it is distributed; the layout is that of tiny_imagenet.py beside the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny_imagenet import CLASSES, WNIDS, write_tiny_imagenet
from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.pool import open_pictures
from warmstart.data.sources import open_images, open_source
from warmstart.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path / "tiny-imagenet-200")


def edit(root: Path, old: str, new: str) -> None:
    """Change val's annotations."""
    path = root / "val" / "val_annotations.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_it_is_read_as_it_is_distributed(root: Path) -> None:
    source = open_source(root)
    assert source.classes == CLASSES
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 18, "val": 9}
    train, val = source.splits["train"], source.splits["val"]
    assert train.ids[:2] == (
        "train/n01443537/images/n01443537_0.JPEG",
        "train/n01443537/images/n01443537_1.JPEG",
    )
    by_wnid = {wnid: number for number, wnid in enumerate(sorted(WNIDS))}
    assert [by_wnid[name.split("/")[1]] for name in train.ids] == train.targets.tolist()
    lines = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    assert {f"val/images/{name}": by_wnid[wnid] for name, wnid, *_ in lines} == dict(
        zip(val.ids, val.targets.tolist(), strict=True)
    )
    told = "\n".join(source.notes)
    assert "Tiny ImageNet's own layout" in told and "the 2 images of test have no labels" in told
    assert "class names from words.txt: n01443537 is 'goldfish'" in told


def test_the_labels_of_val_are_those_of_its_pictures(root: Path) -> None:
    """Each class has a brightness of its own, in both splits."""
    source = open_source(root)
    means = {
        split: [
            np.mean([part.pixels.read(row) for row in np.flatnonzero(part.targets == code)])
            for code in range(3)
        ]
        for split, part in source.splits.items()
    }
    np.testing.assert_allclose(means["train"], means["val"], atol=3)
    assert len({round(mean, -1) for mean in means["val"]}) == 3


def test_the_classes_are_numbered_as_torchvision_does(root: Path) -> None:
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(root / "train"))
    ours = open_source(root).splits["train"]
    assert {Path(path).name: code for path, code in theirs.samples} == {
        Path(name).name: code for name, code in zip(ours.ids, ours.targets.tolist(), strict=True)
    }


def test_a_run_takes_its_splits_as_they_are(root: Path) -> None:
    data = open_dataset(DataConfig(path=str(root)), seed=0)
    assert data.facts.sizes == {"train": 18, "val": 9}
    assert data.facts.counts["val"] == dict.fromkeys(CLASSES, 3)


def test_its_test_images_can_be_predicted_and_it_can_be_prepared(root: Path) -> None:
    assert len(open_images([root / "test" / "images"])) == 2
    assert open_pictures(str(root), None).classes == CLASSES


def test_one_level_too_high_is_told(root: Path) -> None:
    """Where the article points ImageFolder, which finds one class there."""
    with pytest.raises(UserError, match=r"one class only(.|\n)*--data .*tiny-imagenet-200"):
        open_source(root.parent)


def test_val_may_be_sorted_into_folders(root: Path) -> None:
    before = open_source(root)
    annotations = root / "val" / "val_annotations.txt"
    for line in annotations.read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (root / "val" / wnid).mkdir(exist_ok=True)
        shutil.move(root / "val" / "images" / name, root / "val" / wnid / name)
    annotations.unlink()
    after = open_source(root)
    assert after.classes == before.classes
    shutil.copy(root / "test" / "images" / "test_0.JPEG", root / "val" / "images")
    with pytest.raises(UserError, match=r"val has images in folders that wnids\.txt does not list: images"):
        open_source(root)
    assert sorted(after.splits["val"].targets) == sorted(before.splits["val"].targets)


def test_names_that_several_classes_have(root: Path) -> None:
    """As the two cranes of ImageNet: no word tells them apart, so the wnid does."""
    (root / "words.txt").write_text("n01443537\tcrane, bird\nn01629819\tcrane\nn01641577\tcrane\n")
    assert open_source(root).classes == ("crane, bird", "crane (n01629819)", "crane (n01641577)")
    (root / "words.txt").unlink()
    source = open_source(root)
    assert source.classes == tuple(sorted(WNIDS))
    assert "words.txt is missing, so the classes are called by their wnids" in "\n".join(source.notes)


def test_the_fingerprint_follows_the_annotations(root: Path) -> None:
    before = open_source(root).fingerprint
    edit(root, "val_0.JPEG\tn01641577", "val_0.JPEG\tn01443537")
    assert open_source(root).fingerprint != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val_4.JPEG\tn01443537\t0\t32\t44\t62\n", "", "no line for the images val_4.JPEG"),
        (
            "val_3.JPEG\tn01641577",
            "val_3.JPEG\tn99999999",
            r"wnids that wnids.txt does not list: val_3.JPEG \(n99999999\)",
        ),
        ("val_3.JPEG\tn01641577\t0\t32\t44\t62", "val_3.JPEG", "no wnid in line 2"),
        ("val_3.JPEG\t", "val_33.JPEG\t", "val/images lacks val_33.JPEG"),
        (
            "val_3.JPEG\tn01641577\t",
            "val_3.JPEG\tn01443537\t0\t0\t9\t9\nval_3.JPEG\tn01641577\t",
            "several wnids for val_3.JPEG",
        ),
    ],
)
def test_annotations_that_are_wrong_are_named(root: Path, old: str, new: str, message: str) -> None:
    edit(root, old, new)
    with pytest.raises(UserError, match=message):
        open_source(root)


def test_all_problems_are_told_at_once(root: Path) -> None:
    edit(root, "val_4.JPEG\tn01443537", "val_4.JPEG\tn1")
    (root / "wnids.txt").write_text("n01443537\nn01629819\nn02000000\n")
    with pytest.raises(UserError) as caught:
        open_source(root)
    for part in (
        "train has images in folders that wnids.txt does not list: n01641577",
        "train has no folder for n02000000",
        "val_4.JPEG (n1)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("wnids.txt", "wnids.txt is missing"),
        ("val", "val/val_annotations.txt is missing or empty"),
        ("val/val_annotations.txt", "val/val_annotations.txt is missing or empty"),
        ("val/images", "val/images lacks val_0.JPEG"),
        ("train/n01443537/images", "class folders without images: .*n01443537 .found n01443537_boxes.txt"),
    ],
)
def test_what_is_missing_is_named(root: Path, lost: str, message: str) -> None:
    path = root / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(UserError, match=message):
        open_source(root)


def test_columns_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"--label-columns a: .* is no table"):
        open_source(root, label_columns=("a",))
