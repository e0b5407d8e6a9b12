from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.dataset import Recorded, open_dataset
from warmstart.errors import UserError


def sizes(dataset) -> dict[str, int]:
    return {split: len(samples) for split, samples in dataset.splits.items()}


def test_given_splits_are_kept(write_folders):
    layout = {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 1}
    dataset = open_dataset(DataConfig(path=str(write_folders(layout))), seed=0)
    assert sizes(dataset) == {"train": 8, "val": 4, "test": 2}
    facts = dataset.facts
    assert facts.counts["train"] == {"a": 4, "b": 4}
    assert facts.num_samples("val") == 4
    assert facts.heights == facts.widths == (8, 8, 8)
    assert facts.num_channels == 3
    assert dataset.native
    assert "splits as given: train, val, test; train_ratio and val_ratio have no effect" in facts.notes


def test_one_folder_is_divided_by_the_ratios(write_folders):
    root = write_folders({"a": 20, "b": 10}, grey=True)
    dataset = open_dataset(DataConfig(path=str(root), train_ratio=0.6, val_ratio=0.2), seed=0)
    assert sizes(dataset) == {"train": 18, "val": 6, "test": 6}
    assert dataset.facts.counts["test"] == {"a": 4, "b": 2}
    assert dataset.facts.num_channels == 1
    assert "train 18, val 6, test 6" in dataset.facts.notes[-1]
    assert sizes(open_dataset(DataConfig(path=str(root), train_ratio=0.7, val_ratio=0.3), seed=0)) == {
        "train": 21,
        "val": 9,
    }


def test_val_is_carved_out_of_train(write_folders):
    layout = {"train/a": 18, "train/b": 9, "test/a": 2, "test/b": 2}
    dataset = open_dataset(DataConfig(path=str(write_folders(layout))), seed=0)
    assert sizes(dataset) == {"train": 24, "val": 3, "test": 4}
    assert "3 of 27 training images" in dataset.facts.notes[-1]
    assert not set(dataset.splits["train"].ids) & set(dataset.splits["val"].ids)


def test_other_combinations_of_splits(write_folders):
    root = write_folders({"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    assert sizes(open_dataset(DataConfig(path=str(root)), seed=0)) == {"train": 8, "val": 4}
    (root / "val").rename(root / "test")
    assert sizes(open_dataset(DataConfig(path=str(root), val_ratio=0), seed=0)) == {"train": 8, "test": 4}
    (root / "train").rename(root / "val")
    with pytest.raises(UserError, match="has val, test but no train split"):
        open_dataset(DataConfig(path=str(root)), seed=0)


def test_data_to_evaluate_on_need_not_be_fit_for_training(write_folders, write_idx):
    root = write_folders({"val/a": 2, "test/a": 3})
    dataset = open_dataset(DataConfig(path=str(root), limit=1), 0, for_training=False)
    assert sizes(dataset) == {"val": 2, "test": 3}
    assert dataset.classes == ("a",)
    labels = np.array([1, 3])
    settings = DataConfig(
        path=str(write_idx("t10k", np.zeros((2, 4, 4)), labels)), train_ratio=1, val_ratio=0
    )
    dataset = open_dataset(settings, 0, for_training=False)
    assert sizes(dataset) == {"all": 2}
    assert dataset.classes == ("0", "1", "2", "3")
    with pytest.raises(UserError, match="classes without training images: 0, 2"):
        open_dataset(settings, 0)


def test_too_few_images_for_a_split(write_folders):
    dataset = open_dataset(DataConfig(path=str(write_folders({"a": 1, "b": 2}))), seed=0)
    assert sizes(dataset) == {"train": 3}
    assert "too few images per class for a val split" in dataset.facts.notes


def test_a_limit_thins_train_only(write_folders):
    settings = DataConfig(path=str(write_folders({"a": 30, "b": 10})))
    whole = open_dataset(settings, seed=0)
    thin = open_dataset(settings.model_copy(update={"limit": 0.25}), seed=0)
    assert sizes(thin) == {"train": 8, "val": 4, "test": 4}
    assert thin.facts.counts["train"] == {"a": 6, "b": 2}
    assert thin.splits["val"].ids == whole.splits["val"].ids
    assert set(thin.splits["train"].ids) < set(whole.splits["train"].ids)
    assert "limit 0.25: 8 of 32 training images" in thin.facts.notes
    with pytest.raises(UserError, match="classes without training images after limit 1: "):
        open_dataset(settings.model_copy(update={"limit": 1}), seed=0)


def test_corrupt_images_are_quarantined_up_to_a_share(write_folders):
    root = write_folders({"a": 30, "b": 30})
    (root / "a" / "5.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 60 images \(1.7%\) are unreadable: a/5.png \(empty file"):
        open_dataset(DataConfig(path=str(root)), seed=0)
    settings = DataConfig(path=str(root), max_corrupt=0.05)
    dataset = open_dataset(settings, seed=0)
    assert dataset.facts.quarantined == (("a/5.png", "empty file (0 bytes)"),)
    assert sum(sizes(dataset).values()) == 59
    assert all("a/5.png" not in samples.ids for samples in dataset.splits.values())


def test_a_resumed_run_sees_the_same_data_without_a_scan(write_folders, monkeypatch):
    root = write_folders({"a": 30, "b": 30})
    (root / "a" / "5.png").write_bytes(b"")
    settings = DataConfig(path=str(root), max_corrupt=0.05, limit=20)
    first = open_dataset(settings, seed=7)
    monkeypatch.setattr("warmstart.data.dataset.scan", None)
    seen = []
    again = open_dataset(
        settings, 7, Recorded(first.facts.quarantined), lambda done, total: seen.append((done, total))
    )
    assert again.facts == first.facts
    assert again.native == first.native
    assert {split: samples.ids for split, samples in again.splits.items()} == {
        split: samples.ids for split, samples in first.splits.items()
    }
    assert seen[-1] == (59, 59)


def test_all_corrupt_is_an_error_at_any_share(write_folders):
    root = write_folders({"a": 1, "b": 1})
    for name in ("a", "b"):
        (root / name / "0.png").write_text("no")
    with pytest.raises(UserError, match="2 of 2 images"):
        open_dataset(DataConfig(path=str(root), max_corrupt=1), seed=0)


def test_a_class_that_is_all_corrupt_is_named(write_folders):
    root = write_folders({"a": 5, "b": 1})
    (root / "b" / "0.png").write_text("no")
    with pytest.raises(UserError, match="classes without training images: b"):
        open_dataset(DataConfig(path=str(root), max_corrupt=1), seed=0)


def test_a_class_that_val_lacks_is_said(write_folders):
    dataset = open_dataset(DataConfig(path=str(write_folders({"a": 10, "b": 1}))), seed=0)
    assert "val has no image of b" in dataset.facts.notes


def test_sizes_that_differ_are_not_native(write_folders):
    write_folders({"a": 2}, size=(8, 10))
    root = write_folders({"b": 2}, size=(6, 12), grey=True)
    dataset = open_dataset(DataConfig(path=str(root)), seed=0)
    assert not dataset.native
    assert dataset.facts.heights == (6, 7, 8)
    assert dataset.facts.widths == (10, 11, 12)
    assert dataset.facts.num_channels == 3


def test_progress_runs_over_all_splits(write_folders):
    root = write_folders({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    seen = []
    open_dataset(DataConfig(path=str(root)), 0, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 8), (8, 8)]


def test_no_path_is_an_error():
    with pytest.raises(UserError, match="no data set is named"):
        open_dataset(DataConfig(), seed=0)


@pytest.mark.shared
def test_fashion900(shared):
    dataset = open_dataset(DataConfig(path=str(shared / "fashion900")), seed=0)
    assert sizes(dataset) == {"train": 530, "val": 70, "test": 300}
    assert all(
        set(np.bincount(dataset.splits[s].targets)) == {n}
        for s, n in (("train", 53), ("val", 7), ("test", 30))
    )
    assert dataset.facts.num_channels == 1
    assert dataset.native
    assert dataset.facts.heights == (28, 28, 28)


@pytest.mark.shared
def test_dogcat(shared):
    dataset = open_dataset(DataConfig(path=str(shared / "dogcat"), workers=2), seed=0)
    assert sizes(dataset) == {"train": 978, "val": 211, "test": 210}
    assert not dataset.native
    assert dataset.facts.quarantined == ()


def test_animations_are_counted(write_folders):
    root = write_folders({"a": 8, "b": 8})
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (9, 99)]
    frames[0].save(root / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    dataset = open_dataset(DataConfig(path=str(root)), seed=0)
    assert (
        "1 images have several frames or pages, of which the first is taken: a/moving.gif"
        in dataset.facts.notes
    )


def test_numbers_of_channels(write_folders):
    root = write_folders({"a": 8, "b": 8})
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        np.save(path.with_suffix(".npy"), np.zeros((8, 8, 5), np.uint8))
        if number:
            path.unlink()
    with pytest.raises(
        UserError, match=r"differ in the number of channels: 1 images have 3 \(a/0\.png\), 16 images have 5"
    ):
        open_dataset(DataConfig(path=str(root)), seed=0)
    next(root.rglob("*.png")).unlink()
    assert open_dataset(DataConfig(path=str(root)), seed=0).facts.num_channels == 5


def test_a_split_of_which_nothing_can_be_read_is_named(write_folders):
    root = write_folders({"train/a": 60, "train/b": 60, "val/a": 1, "val/b": 1, "test/a": 2, "test/b": 2})
    for name in "ab":
        (root / "val" / name / "0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image of the splits val can be read: val/a/0.png"):
        open_dataset(DataConfig(path=str(root), max_corrupt=0.1), seed=0)
    (root / "test" / "a" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="no image of the splits val can be read"):
        open_dataset(DataConfig(path=str(root), max_corrupt=1), seed=0, for_training=False)


def test_images_of_another_number_of_channels_are_named(write_folders):
    root = write_folders({"a": 6, "b": 6})
    np.save(root / "b" / "odd.npy", np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(UserError, match=r"12 images have 3, 1 images have 5 \(b/odd.npy\)"):
        open_dataset(DataConfig(path=str(root)), seed=0)
