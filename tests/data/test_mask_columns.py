"""Tables that name masks, or hold them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.mask_settings import MaskSettings
from warmstart.data.masks import as_ids
from warmstart.data.sources import open_source
from warmstart.errors import UserError

ROWS = [("train", n) for n in range(6)] + [("val", n) for n in range(6, 9)]


@pytest.fixture
def root(write_pairs) -> Path:
    return write_pairs({("photos", "marks"): 9})


def write_csv(root: Path, header: str, name: str = "list.csv") -> Path:
    lines = [f"photos/{n:02}.png,marks/{n:02}.png,{split}" for split, n in ROWS]
    (root / name).write_text("\n".join([header, *lines]))
    return root / name


def check(source, root: Path) -> None:
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "val": 3}
    assert source.classes == () and source.ignore == 255
    for samples in source.splits.values():
        for row in range(len(samples)):
            assert (samples.pixels.read(row).argmax(-1) == as_ids(samples.masks.read(row))).all()
    dataset = open_dataset(DataConfig(path=str(root)), 0)
    assert dataset.classes == ("0", "1", "2") and dataset.facts.counts["train"]["0"] > 0


@pytest.mark.parametrize("column", ["mask", "mask_path", "label_path", "Mask"])
def test_csv(root, column):
    path = write_csv(root, f"image_path,{column},split")
    check(open_source(path), path)
    path.rename(root / "metadata.csv")  # the table of the folder, as of Hugging Face
    check(open_source(root), root)


def test_a_column_of_any_name(root):
    path = write_csv(root, "file,outline,split")
    source = open_source(path, masks=MaskSettings("outline", ("a", "b", "c"), ignore=9))
    assert source.classes == ("a", "b", "c") and source.ignore == 9
    with pytest.raises(UserError, match=r"--masks outlin: list.csv has no such column(.|\n)*'outline'"):
        open_source(path, masks=MaskSettings("outlin"))
    with pytest.raises(UserError, match="no label column"):
        open_source(path)


def test_labels_beside_masks_are_classes_unless_masks_are_asked_for(root):
    lines = [f"photos/{n:02}.png,marks/{n:02}.png,{'ab'[n % 2]}" for _, n in ROWS]
    (root / "list.csv").write_text("\n".join(["image,mask,label", *lines]))
    source = open_source(root / "list.csv")
    assert source.ignore is None and source.classes == ("a", "b")
    assert "list.csv: ignored the columns mask" in source.notes
    assert open_source(root / "list.csv", masks=MaskSettings("mask")).ignore == 255
    assert open_source(root / "list.csv", masks=MaskSettings(ignore=9)).ignore == 9


def test_masks_that_are_missing_in_a_table(root):
    path = write_csv(root, "image,mask,split")
    text = path.read_text()
    path.write_text(text.replace("marks/03.png", "marks/30.png"))
    with pytest.raises(
        UserError, match=r"1 of 9 images \(11.1%\) are unreadable: photos/03.png \(its mask: file is missing"
    ):
        open_dataset(DataConfig(path=str(path)), 0)
    path.write_text(text.replace("marks/03.png", ""))
    with pytest.raises(UserError, match="the column mask is empty in 1 rows: row 4"):
        open_source(path)
    path.write_text(text + "\nphotos/03.png,marks/04.png,train")
    with pytest.raises(UserError, match="lists 1 images twice"):
        open_source(path)


@pytest.mark.parametrize("kind", ["paths", "bytes", "structs", "label structs"])
def test_parquet(root, kind):
    images = [root / "photos" / f"{n:02}.png" for _, n in ROWS]
    masks = [root / "marks" / f"{n:02}.png" for _, n in ROWS]
    if kind == "paths":
        columns = {
            "image_path": [f"photos/{path.name}" for path in images],
            "mask": [f"marks/{path.name}" for path in masks],
        }
    elif kind == "bytes":
        columns = {
            "image": [path.read_bytes() for path in images],
            "mask": [path.read_bytes() for path in masks],
        }
    else:
        columns = {
            name: [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
            for name, paths in (("image", images), ("label" if kind == "label structs" else "mask", masks))
        }
    columns["split"] = [split for split, _ in ROWS]
    pq.write_table(pa.table(columns), root / "all.parquet")
    check(open_source(root / "all.parquet"), root / "all.parquet")


def test_jsonl_and_class_names_beside_the_table(root):
    lines = [
        json.dumps({"file_name": f"photos/{n:02}.png", "mask": f"marks/{n:02}.png", "split": s})
        for s, n in ROWS
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    (root / "codes.txt").write_text("a\nb\nc\n")
    assert open_source(root).classes == ("a", "b", "c")


def test_the_fingerprint_knows_the_masks(root):
    path = write_csv(root, "image,mask,split")
    first = open_source(path).fingerprint
    assert open_source(path, masks=MaskSettings(ignore=9)).fingerprint != first
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 56), np.uint8)).save(
        root / "marks" / "00.png"
    )
    assert open_source(path).fingerprint != first
