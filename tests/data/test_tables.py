"""CSV and parquet as data, from small real files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.batches import evaluation_batches
from warmstart.data.dataset import Recorded, open_dataset
from warmstart.data.decode import CorruptImage
from warmstart.data.sources import open_source
from warmstart.data.workers import resolve_workers
from warmstart.errors import UserError
from warmstart.records import Preprocessing

PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_csv(
    root: Path, text: str, images: int = 0, name: str = "labels.csv", encoding: str = "utf-8"
) -> Path:
    (root / "img").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        (root / "img" / f"{number}.png").write_bytes(png(number))
    path = root / name
    path.write_bytes(text.encode(encoding))
    return path


def rows(num: int, start: int = 0, split: str = "") -> str:
    return "".join(f"img/{i}.png,{'ab'[i % 2]}{split and ',' + split}\n" for i in range(start, start + num))


def write_hf(
    path: Path, labels: list[int], names: list[str] | None = None, paths: list[str | None] | None = None
):
    images = [
        {"bytes": png(abs(label) * 10 + 1), "path": name}
        for label, name in zip(labels, paths or [None] * len(labels), strict=True)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


def write_table(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_splits(tmp_path, delimiter, encoding):
    text = "Filename,Class,Split,width\n" + "".join(
        f"img/{i}.png,{'äb'[i % 2]},{split},8\n"
        for i, split in enumerate(["training", "train", "valid", "dev", "test", "TEST"])
    )
    path = write_csv(tmp_path, text.replace(",", delimiter).replace("\n", "\r\n"), 6, encoding=encoding)
    source = open_source(path)
    assert source.classes == ("b", "ä")
    assert {split: samples.ids for split, samples in source.splits.items()} == {
        "train": ("img/0.png", "img/1.png"),
        "val": ("img/2.png", "img/3.png"),
        "test": ("img/4.png", "img/5.png"),
    }
    assert source.splits["val"].targets.tolist() == [1, 0]
    assert source.splits["test"].pixels.read(1)[0, 0].tolist() == [5, 5, 5]
    assert source.notes == ("labels.csv: ignored the columns width",)


def test_csv_end_to_end_with_missing_files(tmp_path):
    path = write_csv(tmp_path, "path,label\n" + rows(42), 40)
    with pytest.raises(
        UserError, match=r"2 of 42 images \(4.8%\) are unreadable: img/40.png \(file is missing\)"
    ):
        open_dataset(DataConfig(path=str(path), max_corrupt=0.01), seed=0)
    settings = DataConfig(path=str(path), max_corrupt=0.1, limit=10)
    dataset = open_dataset(settings, seed=0)
    assert dataset.facts.quarantined == (("img/40.png", "file is missing"), ("img/41.png", "file is missing"))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 4,
    }
    again = open_dataset(settings, seed=0, recorded=Recorded(dataset.facts.quarantined))
    assert again.splits["train"].ids == dataset.splits["train"].ids
    batches = list(evaluation_batches(dataset.splits["train"], PREPROCESSING, dataset.native, 4, workers=2))
    numbers = [int(name[4:-4]) for name in dataset.splits["train"].ids]
    assert np.concatenate([batch.images[:, 0, 0, 0] for batch in batches]).tolist() == numbers


def test_csv_numbers_are_sorted_as_numbers(tmp_path):
    path = write_csv(tmp_path, "file,target\n" + "".join(f"img/{i}.png,{i}\n" for i in range(11)), 11)
    assert open_source(path).classes == tuple(map(str, range(11)))


def test_csv_twins(tmp_path):
    path = write_csv(tmp_path, "path,label\n" + rows(4) + "./img/0.png,a\nimg\\1.png,b\n", 4)
    source = open_source(path)
    assert len(source.splits["all"]) == 4
    assert source.notes == ("labels.csv: 2 rows repeat an image and were dropped",)
    write_csv(tmp_path, "path,label\n" + rows(4) + "img/0.png,b\n")
    with pytest.raises(
        UserError, match=r"1 images twice, with different labels, splits or groups: img/0.png \(a and b\)"
    ):
        open_source(path)
    write_csv(tmp_path, "path,label,split\n" + rows(4, 0, "train") + rows(2, 0, "test"))
    with pytest.raises(UserError, match=r"lists 2 images twice.*img/0.png \(a / train and a / test\)"):
        open_source(path)


def test_a_split_column_with_one_value_is_no_split(tmp_path):
    source = open_source(write_csv(tmp_path, "path,label,split\n" + rows(4, 0, "test"), 4))
    assert list(source.splits) == ["all"]
    assert source.notes == ("labels.csv has the split test only: its images are split",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,lable\na.png,1\n",
            r"labels.csv has no label column; its columns are path, lable\nExpected: a column called label or "
            r"class or target(.|\n)*Did you mean 'label'\?",
        ),
        ("picture,label\na,1\n", r"has no image path column; its columns are picture, label"),
        (
            "path,label,split\n" + rows(2, 0, "train") + rows(1, 2, "tset"),
            r"unknown splits: 'tset' \(1 rows\)(.|\n)*'test'",
        ),
        (
            "path,label,split\n" + rows(2, 0, "train") + "img/3.png,aa,val\n",
            r"labels of labels.csv differ between splits: val has 'aa', train has not",
        ),
        ("path,label\n" + rows(2) + "img/2.png,\n", r"the column label is empty in 1 rows: row 3"),
        ("path,label\n" + rows(2) + "img/2.png,a,b\n", r"1 rows have not 2 cells as the header has: row 3"),
        ("path,label\n", r"has 1 rows\nExpected: a header and one row per image"),
        ("", r"has 0 rows"),
        ("path,label\n" + "img/0.png,a\nimg/1.png,a\n", r"has one class only: a"),
    ],
)
def test_csv_that_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        open_source(write_csv(tmp_path, text, 3))


def test_csv_that_is_no_text(tmp_path):
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 11\)"):
        open_source(write_csv(tmp_path, "path,label\nä,a\n", encoding="latin-1"))
    path = write_csv(tmp_path, "path,label\na\0.png,a\n" + "x" * 300 + ".png,b\n")
    pixels = open_source(path).splits["all"].pixels
    for index in range(2):
        with pytest.raises(CorruptImage, match="cannot be read"):
            pixels.read(index)


def test_doubled_paths(tmp_path):
    path = write_csv(tmp_path / "data", "path,label\n" + rows(2) + "data/img/2.png,a\ndata/img/9.png,b\n", 3)
    source = open_source(path)
    assert source.splits["all"].pixels.read(2)[0, 0, 0] == 2
    assert source.splits["all"].ids[2] == "data/img/2.png"
    assert source.notes == ("labels.csv: 1 paths already start with the folder; it was counted once",)
    with pytest.raises(CorruptImage, match="file is missing"):
        source.splits["all"].pixels.read(3)


def test_fingerprints_tell_changes_apart(tmp_path):
    path = write_csv(tmp_path, "path,label\n" + rows(4), 4)
    seen = {open_source(path).fingerprint}
    assert open_source(path).fingerprint in seen
    (tmp_path / "img" / "0.png").write_bytes(png(0) + b" ")
    seen.add(open_source(path).fingerprint)
    write_csv(tmp_path, "path,label\n" + rows(3))
    seen.add(open_source(path).fingerprint)
    for labels in ([0, 1, 0, 1], [0, 1, 1, 1]):
        write_hf(tmp_path / "train.parquet", labels)
        seen.add(open_source(tmp_path / "train.parquet").fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize("folder", ["", "data"])
def test_hugging_face_shards(tmp_path, folder):
    names = ["zebra", "ant"]
    write_hf(tmp_path / folder / "train-00000-of-00002.parquet", [0, 1, 0, 1, 0], names)
    write_hf(tmp_path / folder / "train-00001-of-00002.parquet", [1, 1], names)
    write_hf(tmp_path / folder / "validation-00000-of-00001.parquet", [1, 0], names)
    source = open_source(tmp_path)
    assert source.classes == ("zebra", "ant")
    assert "in the order of the file's ClassLabel, not sorted: zebra, ant" in source.notes[0]
    train = source.splits["train"]
    assert train.targets.tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert train.ids[-1] == "train/000006"
    assert source.splits["val"].ids == ("val/000000", "val/000001")
    picked = train.subset(np.array([5, 2])).subset(np.array([0]))
    assert picked.pixels.read(0)[0, 0, 0] == 11
    assert picked.pixels.shape(0) == (8, 8, 3)
    dataset = open_dataset(DataConfig(path=str(tmp_path), limit=4), seed=0)
    assert len(dataset.splits["train"]) == 4
    assert resolve_workers("auto", train) == resolve_workers("auto", picked)
    for workers in (0, 2):
        batches = evaluation_batches(train, PREPROCESSING, dataset.native, 3, workers)
        shown = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
        assert shown.tolist() == (train.targets * 10 + 1).tolist()
    (tmp_path / folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"has 1 of the 2 parts of train; missing: 0"):
        open_source(tmp_path)


def test_parquet_ids_are_paths_where_these_are_unique(tmp_path):
    write_hf(tmp_path / "x.parquet", [3, 12], paths=["a/1.png", "a/2.png"])
    source = open_source(tmp_path)
    assert source.splits["all"].ids == ("a/1.png", "a/2.png")
    assert source.classes == ("3", "12")
    write_hf(tmp_path / "x.parquet", [3, 12], paths=["a.png", "a.png"])
    assert open_source(tmp_path).splits["all"].ids == ("all/000000", "all/000001")


def test_ocec_embedded_and_broken_images(tmp_path):
    write_table(
        tmp_path / "dataset.parquet",
        split=["train"] * 4 + ["val"] * 2,
        label=["open", "closed"] * 3,
        class_id=[1, 0] * 3,
        image_path=["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"],
        image_bytes=[png(1), png(2), b"", None, png(5), png(6)],
    )
    (tmp_path / "d.png").write_bytes(png(4))
    source = open_source(tmp_path)
    assert source.classes == ("closed", "open")
    assert source.notes[0].endswith("the column label: classes in the order of class_id: closed, open")
    dataset = open_dataset(DataConfig(path=str(tmp_path), max_corrupt=0.5), seed=0)
    assert dataset.facts.quarantined == (("c.png", "empty image (0 bytes)"),)
    assert dataset.splits["train"].ids == ("a.png", "b.png", "d.png")
    assert dataset.splits["train"].pixels.read(2)[0, 0, 0] == 4
    (tmp_path / "d.png").unlink()
    dataset = open_dataset(DataConfig(path=str(tmp_path), max_corrupt=0.5), seed=0)
    assert dict(dataset.facts.quarantined)["d.png"] == "file is missing"


def test_ocec_paths_only(tmp_path):
    root = tmp_path / "data"
    write_csv(root, "", 4)
    paths = ["data/img/0.png", "data/img/1.png", "img/2.png", "img/3.png", "img/3.png"]
    write_table(root / "dataset.parquet", image_path=paths, class_id=[0, 1, 0, 1, 1])
    source = open_source(root)
    assert source.classes == ("0", "1")
    assert [source.splits["all"].pixels.read(i)[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]
    assert source.notes == (
        "data: 2 paths already start with the folder; it was counted once",
        "data: 1 rows repeat an image and were dropped",
    )


def test_parquet_that_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, picture=["a"], label=[1])
    with pytest.raises(
        UserError, match=r"no image column; its columns are picture \(string\), label \(int64\)"
    ):
        open_source(path)
    write_table(path, image_path=["a"], text=["b"])
    with pytest.raises(UserError, match=r"x.parquet has no label column; its columns are text"):
        open_source(path)
    write_table(path, image_path=["a", "b", None], label=[1, 2, 1])
    with pytest.raises(UserError, match="1 of 3 rows have no image"):
        open_source(path)
    write_table(path, image_path=["a", "b"], label=[1, None])
    with pytest.raises(UserError, match="the column label is empty in 1 rows: row 2"):
        open_source(path)
    write_table(path, image_path=["a", "b"], label=[1, 2], split=["train", None])
    with pytest.raises(UserError, match="1 of 2 rows have no split"):
        open_source(path)
    write_hf(path, [0, -1], ["a", "b"])
    with pytest.raises(UserError, match=r"labels without a name: -1 \(1 rows\)(.|\n)*kept secret"):
        open_source(path)
    write_hf(path, [])
    with pytest.raises(UserError, match="has no rows"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read: "):
        open_source(path)


def test_file_names_that_are_refused(tmp_path):
    write_hf(tmp_path / "train.parquet", [0, 1], ["a", "b"])
    write_hf(tmp_path / "test.parquet", [0, 1], ["b", "a"])
    with pytest.raises(UserError, match=r"name different classes: train.parquet: a, b; test.parquet: b, a"):
        open_source(tmp_path)
    write_hf(tmp_path / "more.parquet", [0, 1])
    with pytest.raises(UserError, match=r"with and without a split in their names: more.parquet"):
        open_source(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "train-test.parquet")
    with pytest.raises(UserError, match="tells several splits: test, train"):
        open_source(tmp_path)
    for name in ("train-test", "test"):
        (tmp_path / f"{name}.parquet").unlink()
    write_hf(tmp_path / "other.parquet", [0, 1])
    with pytest.raises(
        UserError, match=r"several parquet files whose names tell no split: more.parquet, other"
    ):
        open_source(tmp_path)


def test_class_folders_beside_a_stray_table_stay_class_folders(write_folders):
    root = write_folders({"a": 2, "b": 2})
    write_hf(root / "features.parquet", [0, 1])
    assert open_source(root).classes == ("a", "b")


MEASURE = """
import sys, time
from warmstart.data.sources import open_source
import pyarrow as pa

try:  # pyarrow imports it where it is installed, and that is no memory of ours
    import pandas
except ImportError:
    pass

def peak():  # of this process alone: ru_maxrss may hold the peak of the one that started it
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before, start = peak(), time.perf_counter()
source = open_source(sys.argv[1])
took, grown = time.perf_counter() - start, peak() - before
encoded = sum(chunk.nbytes for chunk in source.splits["train"].pixels.chunks)
print(took, grown, pa.default_memory_pool().max_memory(), encoded)
"""


@pytest.mark.shared
def test_cifar10(shared):
    source = open_source(shared / "cifar10")
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert source.classes == tuple(names.split())
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 50000,
        "test": 10000,
    }
    assert np.bincount(source.splits["train"].targets).tolist() == [5000] * 10
    assert source.splits["test"].pixels.read(9999).shape == (32, 32, 3)


@pytest.mark.shared
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cifar10_is_held_once(shared):
    """The files hold 55 MB of JPEG, which zstd brings to 19 MB: that is what must not be there twice."""
    command = [sys.executable, "-c", MEASURE, str(shared / "cifar10")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, grown, arrow, encoded = map(float, result.stdout.split())
    print(
        f"{seconds:.2f} s, +{grown / 1e6:.0f} MB, Arrow {arrow / 1e6:.0f} MB, images {encoded / 1e6:.0f} MB"
    )
    assert arrow < 1.25 * encoded
    assert grown < 2.5 * encoded  # code pages, the mapped files and the ids too
    assert seconds < 10
