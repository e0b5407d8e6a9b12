from __future__ import annotations

import json

import numpy as np
import pytest

from warmstart.data.sources import open_source
from warmstart.errors import UserError


def write_table(path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def pictures(write_folders):
    """Six images in images/, no class folders."""
    return write_folders({"images": 6})


def labels(source, split: str = "all") -> dict[str, str]:
    samples = source.splits[split]
    return {name: source.classes[code] for name, code in zip(samples.ids, samples.targets, strict=True)}


def test_labels_csv_in_a_folder(pictures):
    write_table(pictures / "labels.csv", "file,label", [f"images/{n}.png,{'cd'[n % 2]}" for n in range(6)])
    source = open_source(pictures)
    assert labels(source)["images/3.png"] == "d"
    assert source.splits["all"].pixels.read(0).shape == (8, 8, 3)
    assert source.notes == ()


def test_metadata_in_every_split_folder(write_folders):
    """The layout of Hugging Face's ImageFolder."""
    root = write_folders({"train": 4, "test": 2})
    for split, num in (("train", 4), ("test", 2)):
        lines = [{"file_name": f"{n}.png", "label": "xy"[n % 2], "boxes": {"n": n}} for n in range(num)]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = open_source(root)
    assert labels(source, "test") == {"test/0.png": "x", "test/1.png": "y"}
    assert len(source.splits["train"]) == 4
    assert "ignored the columns boxes" in " ".join(source.notes)
    (root / "test" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"train/metadata.jsonl, but none in test"):
        open_source(root)
    write_table(root / "test" / "metadata.csv", "file_name,label,more", ["0.png,x,1", "1.png,y,2"])
    with pytest.raises(UserError, match="the same columns in every split"):
        open_source(root)


def test_labels_of_a_jsonl_may_be_lists(pictures):
    lines = [{"file_name": f"images/{n}.png", "tags": ["a", "b"][: n % 3], "id": n} for n in range(6)]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = open_source(pictures).splits["all"]
    assert samples.targets.tolist() == [[0, 0], [1, 0], [1, 1]] * 2
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{broken')
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2: .*\nExpected: one JSON object per line"):
        open_source(pictures)
    (pictures / "metadata.jsonl").write_text("[1]")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        open_source(pictures)
    (pictures / "metadata.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no rows"):
        open_source(pictures)


def test_the_table_wins_over_class_folders_where_it_is_usable(write_folders):
    root = write_folders({"a": 3, "b": 3})
    names = [f"{label}/{n}.png" for label in "ab" for n in range(3)]
    write_table(root / "labels.csv", "path,label", [f"{name},{'pq'[n % 2]}" for n, name in enumerate(names)])
    source = open_source(root)
    assert source.classes == ("p", "q")
    assert "labels.csv names the labels; the folders are not taken for classes" in source.notes
    write_table(root / "labels.csv", "path,label", [f"{n}.jpg,p" for n in range(6)])
    source = open_source(root)
    assert source.classes == ("a", "b")
    assert "labels.csv is ignored, the class folders decide: none of its images exists" in source.notes[0]
    write_table(root / "labels.csv", "path,caption", [f"{name},hello" for name in names])
    assert "it has no column of labels" in open_source(root).notes[0]


def test_splits_by_the_folders_of_the_images(write_folders):
    root = write_folders({"train": 4, "val": 2})
    names = [f"train/{n}.png" for n in range(4)] + ["val/0.png", "val/1.png"]
    write_table(root / "labels.csv", "path,label", [f"{name},{'pq'[n % 2]}" for n, name in enumerate(names)])
    source = open_source(root)
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 4, "val": 2}
    assert "labels.csv: splits by the folders of the images" in source.notes


def test_columns_are_handed_on(pictures):
    rows = [f"images/{n}.png,{n % 2},{n // 3},p{n // 2}" for n in range(6)]
    write_table(pictures / "labels.csv", "path,x,y,person", rows)
    samples = open_source(pictures, label_columns=("x", "y"), group="person").splits["all"]
    assert samples.targets.dtype == np.uint8 and samples.targets.shape == (6, 2)
    assert np.bincount(samples.groups).tolist() == [2, 2, 2]
    with pytest.raises(UserError, match=r"labels.csv has no such column"):
        open_source(pictures, label_columns=("x", "y"), group="patient")


def test_tables_that_cannot_be_used(pictures):
    write_table(pictures / "labels.csv", "path,label", ["0.png,a", "1.png,b"])
    with pytest.raises(UserError, match=r"labels.csv: none of its images exists, such as 0.png"):
        open_source(pictures)
    write_table(pictures / "labels.csv", "path,caption", ["images/0.png,a", "images/1.png,b"])
    with pytest.raises(UserError, match=r"labels.csv has no label column"):
        open_source(pictures)
    write_table(pictures / "metadata.csv", "path,label", ["images/0.png,a", "images/1.png,b"])
    with pytest.raises(UserError, match=r"holds labels.csv, metadata.csv"):
        open_source(pictures)


def write_jsonl(root, records: list[dict], encoding: str = "utf-8") -> None:
    lines = [
        json.dumps({"file_name": f"images/{n}.png", **r}, ensure_ascii=False) for n, r in enumerate(records)
    ]
    (root / "metadata.jsonl").write_bytes("\n".join(lines).encode(encoding))


def test_a_jsonl_that_is_not_utf8_is_refused(pictures):
    write_jsonl(pictures, [{"label": ["café", "dog"][n % 2]} for n in range(6)], "latin-1")
    with pytest.raises(UserError, match=r"metadata.jsonl is not UTF-8 text(.|\n)*save it as UTF-8"):
        open_source(pictures)


def test_only_line_feeds_end_a_line_of_jsonl(pictures):
    write_jsonl(pictures, [{"label": ["cat", "dog"][n % 2], "text": "a\u2028b\x85c"} for n in range(6)])
    assert labels(open_source(pictures))["images/1.png"] == "dog"
    text = (pictures / "metadata.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (pictures / "metadata.jsonl").write_bytes(text)
    assert len(open_source(pictures).splits["all"]) == 6


def test_lists_of_a_jsonl_are_what_they_are_in_parquet(pictures):
    write_jsonl(pictures, [{"label": [["cat"], ["dog"], ["a|b"]][n % 3]} for n in range(6)])
    source = open_source(pictures)
    assert source.classes == ("a|b", "cat", "dog")
    assert source.splits["all"].targets.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]] * 2
    write_jsonl(pictures, [{"label": [["cat"], "dog", None][n % 3]} for n in range(6)])
    assert open_source(pictures).splits["all"].targets.tolist() == [[1, 0], [0, 1], [0, 0]] * 2


def test_labels_of_a_jsonl_that_are_no_labels(pictures):
    write_jsonl(pictures, [{"label": {"x": n % 2}} for n in range(6)])
    with pytest.raises(UserError, match=r"metadata.jsonl: the column label holds dict"):
        open_source(pictures)
    write_jsonl(pictures, [{"label": [n % 2, float("nan")][n == 3]} for n in range(6)])
    with pytest.raises(UserError, match=r"the column label is empty in 1 rows: row 4"):
        open_source(pictures)


def test_a_csv_and_its_folder_agree_on_splits(write_folders):
    root = write_folders({"train": 4, "test": 2})
    rows = [
        f"{split}/{n}.png,{'xy'[n % 2]}" for split, num in (("train", 4), ("test", 2)) for n in range(num)
    ]
    write_table(root / "labels.csv", "path,label", rows)
    folder, file = open_source(root), open_source(root / "labels.csv")
    assert {n: s.ids for n, s in folder.splits.items()} == {n: s.ids for n, s in file.splits.items()}
    assert list(file.splits) == ["train", "test"] and folder.fingerprint == file.fingerprint
    assert "labels.csv: splits by the folders of the images" in file.notes
