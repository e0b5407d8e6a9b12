from __future__ import annotations

import numpy as np
import pytest

from warmstart.config.schema import DataConfig
from warmstart.config.values import parse_group
from warmstart.data.dataset import open_dataset
from warmstart.data.sources import open_source
from warmstart.errors import UserError


@pytest.fixture
def patients(write_folders):
    """Two classes of 12 patients with 3 images each, and one image that tells no patient."""
    root = write_folders({"a": 37, "b": 36})
    for label in "ab":
        for number, path in enumerate(sorted((root / label).iterdir(), key=lambda path: int(path.stem))):
            patient = f"patient{number // 3 % 12:02d}_{number % 3}" if number < 36 else "unknown"
            path.rename(path.with_name(f"{patient}.png"))
    return root


PATTERN = r"(patient\d+)_"


def patients_of(samples) -> set[str]:
    return {name.split("/")[1].split("_")[0] for name in samples.ids}


def test_a_pattern_keeps_patients_apart(patients):
    settings = DataConfig(path=str(patients), group=PATTERN, train_ratio=0.6, val_ratio=0.2)
    dataset = open_dataset(settings, seed=0)
    found = {split: patients_of(samples) for split, samples in dataset.splits.items()}
    assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    assert sum(map(len, dataset.splits.values())) == 73
    notes = " ".join(dataset.facts.notes)
    assert "12 groups of up to 6 images; 1 images that it does not match are each their own group" in notes
    assert "divided, by whole groups, by train_ratio and val_ratio" in notes
    plain = open_dataset(DataConfig(path=str(patients), train_ratio=0.6, val_ratio=0.2), seed=0)
    assert patients_of(plain.splits["train"]) & patients_of(plain.splits["val"])


def test_groups_are_the_same_in_all_splits(write_folders):
    root = write_folders({"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 3})
    source = open_source(root, group=r"/(\d+)\.")
    names = [name for samples in source.splits.values() for name in samples.ids]
    codes = np.concatenate([samples.groups for samples in source.splits.values()]).tolist()
    stems = [name.rpartition("/")[2] for name in names]
    assert len(set(zip(stems, codes, strict=True))) == len(set(codes)) == 3


def test_groups_across_given_splits_are_refused_if_asked_for(write_folders):
    root = write_folders({"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    with pytest.raises(UserError, match=r"1 of 2 groups are in more than one of the splits as given, e\.g\."):
        open_dataset(DataConfig(path=str(root), group=r"/(\d+)\."), seed=0)
    dataset = open_dataset(DataConfig(path=str(root), group=r"^(\w+)/", val_ratio=0), seed=0)
    assert "none of 2 groups is in two of the splits" in dataset.facts.notes
    with pytest.raises(UserError, match="4 images are in 1 groups, too few for train, val"):
        open_dataset(DataConfig(path=str(root), group=r"^(\w+)/"), seed=0)


def test_val_is_carved_by_whole_groups(patients, tmp_path):
    root = tmp_path / "split"
    (root / "test").mkdir(parents=True)
    patients.rename(root / "train")
    for label in "ab":
        (root / "test" / label).mkdir()
        (root / "train" / label / "patient11_0.png").rename(root / "test" / label / "patient99_0.png")
        for number in (1, 2):
            (root / "train" / label / f"patient11_{number}.png").unlink()
    dataset = open_dataset(DataConfig(path=str(root), group=PATTERN), seed=0)
    found = {split: {n.split("/")[-1].split("_")[0] for n in s.ids} for split, s in dataset.splits.items()}
    assert found["val"] and not found["train"] & found["val"]


def test_patterns_that_cannot_be_used(patients, write_idx):
    with pytest.raises(UserError, match=r"matches none of the 73 ids, such as a/patient00_0.png"):
        open_source(patients, group=r"^(subject\d+)")
    with pytest.raises(UserError, match="too few for train, val, test"):
        open_dataset(DataConfig(path=str(patients), group="(.png)"), seed=0)
    with pytest.raises(UserError, match=r"--group patient: .* is no table, and has no columns"):
        open_source(patients, group="patient")
    idx = write_idx("train", np.zeros((2, 4, 4)), np.array([0, 1]))
    with pytest.raises(UserError, match=r"--label-columns x, y: .* is no table"):
        open_source(idx, label_columns=("x", "y"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("^(a", "not a regular expression"),
        (r"^patient\d+", "has 0 capture groups, not one"),
        ("(a)(b)", "has 2 capture groups"),
    ],
)
def test_patterns_are_checked_before_any_work(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_group(text)
    with pytest.raises(ValueError, match=reason):
        DataConfig(group=text)


def test_written_forms():
    assert parse_group("patient_id") == "patient_id"
    assert parse_group(None) is parse_group("none") is None
    assert parse_group("^(?:x|y)(a)") == "^(?:x|y)(a)"
