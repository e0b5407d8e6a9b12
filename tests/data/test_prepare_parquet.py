"""Annotations become a parquet file that no group and no picture crosses; what would have leaked is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import warmstart as ws
from warmstart.api import prepare
from warmstart.cli import main
from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.prepare_parquet import Preparation, prepare_parquet
from warmstart.errors import UserError

PERSON = r"(p\d+)/"


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    """20 people with 6 frames each; one picture of p00 lies once more under p01. Annotations without a header."""
    generator = np.random.default_rng(0)
    rows = []
    for person in range(20):
        folder = tmp_path / "cropped" / f"p{person:02}"
        folder.mkdir(parents=True)
        for frame in range(6):
            pixels = generator.integers(0, 255, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{frame}.png")
            rows.append(f"cropped/p{person:02}/{frame}.png,{(person + frame) % 2}")
    (tmp_path / "cropped/p01/0.png").write_bytes((tmp_path / "cropped/p00/1.png").read_bytes())
    (tmp_path / "annotation.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "annotation.csv"


def prepared(eyes: Path, name: str = "out.parquet", **given: Any) -> tuple[Preparation, list[dict[str, Any]]]:
    made = prepare("parquet", str(eyes), str(eyes.parent / name), **given)
    return made, pq.read_table(eyes.parent / name).to_pylist()


def test_groups_and_copies_never_cross_a_split(eyes: Path) -> None:
    made, rows = prepared(eyes, group=PERSON, classes="closed,open", train_ratio=0.6, val_ratio=0.2)
    assert list(rows[0]) == ["split", "label", "class_id", "image_path", "source"]
    assert len(rows) == 120 and {row["label"] for row in rows} == {"closed", "open"}
    assert all(row["label"] == ("closed", "open")[row["class_id"]] for row in rows)
    where: dict[str, set[str]] = {}
    for row in rows:
        where.setdefault(row["image_path"].split("/")[1], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())
    assert where["p00"] == where["p01"], "they share a picture"
    assert (made.num_groups, made.num_copies) == (19, 1)
    assert sum(made.counts["train"].values()) == pytest.approx(72, abs=6)
    assert abs(made.counts["train"]["open"] - made.counts["train"]["closed"]) <= 6
    single, written = made.leaks
    assert (written.how, written.torn, written.images, written.copies) == ("as written", 0, 0, 0)
    assert single.torn > 15 and single.images > 40
    assert f"{single.torn} groups torn apart, {single.images} images" in made.text()
    assert {row["source"] for row in rows if row["image_path"].startswith("cropped/p05")} == {
        "cropped/p05/0.png"
    }


def test_the_count_of_a_split_by_single_images_is_exact(eyes: Path) -> None:
    """Counted again, slowly, from the given splits, which stand in a column."""
    lines = [
        f"{line},{split}" for line, split in zip(eyes.read_text().split(), ["train", "val"] * 60, strict=True)
    ]
    table = eyes.parent / "given.csv"
    table.write_text("\n".join(["image_path,label,split", *lines]))
    made, _ = prepared(table, group=PERSON)
    given = made.leaks[0]
    assert given.how == "the splits that the data came with"
    assert (given.torn, given.images) == (19, 60)  # each of 20 people, of whom two are one group, is in both
    assert given.copies == 1  # p00/1 is val and p01/0 is train
    assert [leak.torn for leak in made.leaks][-1] == 0


def test_it_is_reproducible_and_depends_on_the_seed(eyes: Path) -> None:
    (_, first), (_, again) = (prepared(eyes, f"{n}.parquet", group=PERSON, seed=3) for n in "ab")
    _, other = prepared(eyes, "c.parquet", group=PERSON, seed=4)
    assert first == again != other


def test_what_is_written_can_be_trained_on(eyes: Path) -> None:
    for embed in (False, True):
        (eyes.parent / "sets").mkdir(exist_ok=True)
        made, rows = prepared(eyes, f"sets/{embed}.parquet", group=PERSON, embed=embed, classes="closed,open")
        dataset = open_dataset(DataConfig(path=made.path), 0)
        assert dataset.classes == ("closed", "open")
        assert {s: len(x) for s, x in dataset.splits.items()} == {
            s: sum(c.values()) for s, c in made.counts.items()
        }
        assert ("image_bytes" in rows[0]) == embed
        path = rows[0]["image_path"]
        assert path.startswith("cropped/" if embed else "../cropped/")
        samples = dataset.splits["train"]
        wanted = np.asarray(Image.open(eyes.parent / samples.ids[0].removeprefix("../")))
        assert np.array_equal(samples.pixels.read(0), wanted)


def test_folders_of_images_and_arrays(eyes: Path, overlapping: Path) -> None:
    made = prepare("parquet", str(overlapping), str(eyes.parent / "folders.parquet"))
    assert sum(made.counts["train"].values()) == pytest.approx(0.8 * 42, abs=2)
    assert "no --group: " in made.text() and made.num_groups == 42
    with pytest.raises(UserError, match=r"is no file of its own[\s\S]*--embed"):
        prepare_parquet(_in_memory(), str(eyes.parent / "m.parquet"), DataConfig())
    prepare_parquet(_in_memory(), str(eyes.parent / "m.parquet"), DataConfig(), embed=True)
    dataset = open_dataset(DataConfig(path=str(eyes.parent / "m.parquet")), 0)
    kept = {bytes(s.pixels.read(i)) for s in dataset.splits.values() for i in range(len(s))}
    assert kept == {bytes(image) for image in PICTURES}


PICTURES = np.random.default_rng(5).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)


def _in_memory() -> str:
    from warmstart.data.memory import keep

    return keep((PICTURES, np.arange(30) % 2))


def test_other_numbers_and_contradicting_copies_are_told(eyes: Path) -> None:
    """p01/0 is the picture of p00/1: both are of class 1 until the first is called 0."""
    plain, _ = prepared(eyes)
    assert not [note for note in plain.notes if "class_id" in note or "another label" in note]
    told = eyes.read_text().replace("p01/0.png,1", "p01/0.png,0")
    eyes.write_text(told.replace(",1\n", ",2\n").replace(",0\n", ",1\n"))
    made, rows = prepared(eyes, "other.parquet", classes="closed,open")
    assert {(row["label"], row["class_id"]) for row in rows} == {("closed", 0), ("open", 1)}
    assert "other numbers there: 1 is 0, 2 is 1" in made.text()
    assert "1 copies have another label than the image that they are a copy of: " in made.text()
    assert "cropped/p01/0.png (closed) is cropped/p00/1.png (open)" in made.text()


def test_the_command(eyes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = eyes.parent / "cli.parquet"
    command = ["prepare", "parquet", str(eyes), "--output", str(out), "--group", PERSON, "--embed", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out) and found["leaks"][-1]["torn"] == 0
    assert ws.prepare("parquet", str(eyes), str(eyes.parent / "api.parquet")).num_copies == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "csv"}, "prepare csv[\\s\\S]*prepare parquet"),
        ({"output": "x.csv"}, "has the suffix '.csv'"),
        ({"output": "absent/x.parquet"}, "there is no folder"),
        ({"annotations": "absent.csv"}, "absent.csv"),
        ({"classes": "open"}, "--classes open: the data have 2 labels"),
        ({"classes": "open,open"}, "a name of its own"),
        ({"group": "(q[0-9]+)/"}, "matches none of the 120 ids"),
        ({"group": "subject"}, "no such column"),
        ({"train_ratio": 0.9, "val_ratio": 0.2}, "add up to more than 1"),
        ({"train_ratio": "much"}, "--train-ratio"),
        ({"group": "(cropped)/"}, "in 1 groups, too few"),
        ({"colour": 1}, "prepare takes no colour"),
    ],
)
def test_bad_input(eyes: Path, given: dict[str, Any], told: str) -> None:
    values = {"kind": "parquet", "annotations": str(eyes), "output": "new.parquet"} | given
    values["output"] = str(eyes.parent / values["output"])
    with pytest.raises(UserError, match=told):
        prepare(values.pop("kind"), values.pop("annotations"), values.pop("output"), **values)
    assert not list(eyes.parent.glob("*.parquet")) and not list(eyes.parent.glob(".*"))


def test_bad_files(eyes: Path) -> None:
    target = str(eyes.parent / "new.parquet")
    (eyes.parent / "cropped/p03/2.png").unlink()
    (eyes.parent / "cropped/p04/0.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"2 of 120 images cannot be read: cropped/p03/2\.png .*, cropped/p04/0\.png"
    ):
        prepare("parquet", str(eyes), target)
    eyes.write_text("a.png,1,x\nb.png,0,y\n")
    with pytest.raises(UserError, match=r"has 3 columns and no header"):
        prepare("parquet", str(eyes), target)
    (eyes.parent / "several.csv").write_text("path,labels\na.png,happy|glad\nb.png,glad\nc.png,happy\n")
    with pytest.raises(UserError, match="has several labels per image"):
        prepare("parquet", str(eyes.parent / "several.csv"), target)
    (eyes.parent / "taken.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="exists already"):
        prepare("parquet", str(eyes), str(eyes.parent / "taken.parquet"))
    assert (eyes.parent / "taken.parquet").read_bytes() == b""
