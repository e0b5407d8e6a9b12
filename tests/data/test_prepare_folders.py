"""A raw tree becomes train, val and test folders of every class: whole, without a copy across splits, or not at all."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import warmstart as ws
from warmstart.cli import main
from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.folder_writer import places_of
from warmstart.data.pool import Pool
from warmstart.data.samples import ArrayPixels, Samples, Source
from warmstart.errors import UserError

SIZES = {"ant": 30, "bee": 20, "cat": 12, "dog": 5}
SPLITS = ("train", "val", "test")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """67 pictures of four classes in nested folders; bee/0 lies again as bee/copy and, wrongly, as cat/copy."""
    generator = np.random.default_rng(0)
    for name, number in SIZES.items():
        for index in range(number):
            file = tmp_path / "raw" / name / f"day{index % 2}" / f"{index // 2}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (6, 9, 3), dtype=np.uint8)).save(file)
    for name in ("bee", "cat"):
        shutil.copy(tmp_path / "raw/bee/day0/0.png", tmp_path / f"raw/{name}/copy.png")
    return tmp_path / "raw"


def prepared(raw: Path, name: str = "out", **given: Any) -> tuple[Any, dict[str, dict[str, int]]]:
    out = raw.parent / name
    made = ws.prepare("folders", str(raw), output_dir=str(out), **given)
    files = [path.relative_to(out).parts for path in out.rglob("*.png")]
    return made, {s: dict(Counter(p[1] for p in files if p[0] == s)) for s in SPLITS if (out / s).is_dir()}


def test_all_three_splits_with_every_class_by_its_share(raw: Path) -> None:
    """The document's script makes train and test, and its loader demands val."""
    made, found = prepared(raw, train_ratio=0.6, seed=42)
    assert found == made.counts and list(found) == list(SPLITS)
    for name, number in (SIZES | {"bee": 21, "cat": 13}).items():
        assert sum(found[split][name] for split in SPLITS) == number, "nothing is lost"
        assert found["train"][name] == pytest.approx(0.6 * number, abs=1.01)
        assert found["val"][name] == pytest.approx(0.2 * number, abs=1.01)
    rows = [line.split() for line in made.text().splitlines()]
    assert ["class", "train", "val", "test", "all"] in rows
    assert ["ant", *(str(found[split]["ant"]) for split in SPLITS), "30"] in rows
    record = json.loads((raw.parent / "out" / "preparation.json").read_text())
    assert record["counts"] == found and record["seed"] == 42
    assert record["shares"] == {"train": 0.6, "val": 0.2, "test": 0.2}


def test_a_share_of_nothing_is_no_split(raw: Path) -> None:
    made, found = prepared(raw, train_ratio=0.8, val_ratio=0)
    assert list(found) == ["train", "test"] and found == made.counts
    assert sum(found["test"].values()) == pytest.approx(0.2 * 69, abs=2)


def test_no_picture_crosses_a_split_and_the_leak_is_counted(raw: Path) -> None:
    for seed in range(5):
        made, _ = prepared(raw, f"out{seed}", seed=seed)
        where: dict[str, set[str]] = {}
        for path in (raw.parent / f"out{seed}").rglob("*.png"):
            split = path.relative_to(raw.parent / f"out{seed}").parts[0]
            where.setdefault(sha256(path.read_bytes()).hexdigest(), set()).add(split)
        assert len(where) == 67 and all(len(splits) == 1 for splits in where.values())
        assert (made.num_copies, made.num_groups) == (2, 67)
        assert (made.leaks[-1].how, made.leaks[-1].torn, made.leaks[-1].copies) == ("as written", 0, 0)
    assert any("have another label than the image that they are a copy of" in note for note in made.notes)


def test_every_file_comes_with_its_bytes_and_its_origin(raw: Path) -> None:
    """Files of one name in several folders keep apart, also where names differ in case alone."""
    (raw / "ant/day0/0.png").rename(raw / "ant/day0/A.png")
    (raw / "ant/day1/0.png").rename(raw / "ant/day1/a.png")
    prepared(raw)
    with (raw.parent / "out" / "origins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["file"].casefold() for row in rows}) == 69
    for row in rows:
        assert (raw.parent / "out" / row["file"]).read_bytes() == (raw / row["origin"]).read_bytes()
        assert not (raw.parent / "out" / row["file"]).is_symlink()
    names = {Path(row["file"]).name for row in rows}
    assert {"copy.png", "ant_day0_A.png", "ant_day1_a.png"} <= names


def test_no_file_is_written_over_another() -> None:
    """A number behind a name may make a name that another image has already."""
    images = ("x-2.png", "a/x.png", "b/x.png", "a_x.png", "c/.hidden", "d/" + "长" * 90 + ".png")
    pixels = ArrayPixels(np.zeros((6, 4, 4, 3), np.uint8))
    samples = Samples(images, np.zeros(6, np.int64), pixels)
    places = places_of(Pool.of(Source(("k",), {"all": samples}, "")), ("k",))
    assert places[:5] == ["k/x-2.png", "k/a_x.png", "k/b_x.png", "k/a_x-2.png", "k/hidden.png"]
    assert places[5].endswith("长.png") and len(places[5].encode()) < 210


def test_it_is_reproducible_and_depends_on_the_seed(raw: Path) -> None:
    def tree(name: str, seed: int) -> list[tuple[str, bytes]]:
        prepared(raw, name, seed=seed)
        out = raw.parent / name
        return sorted((p.relative_to(out).as_posix(), p.read_bytes()) for p in out.rglob("*.png"))

    assert tree("a", 3) == tree("b", 3) != tree("c", 4)


def test_the_largest_classes_or_those_that_are_named(raw: Path) -> None:
    made, found = prepared(raw, "largest", num_classes=2)
    assert set(found["train"]) == {"ant", "bee"}
    assert "2 of 4 classes, the 2 with the most images; without cat (13), dog (5)" in made.text()
    made, found = prepared(raw, "named", classes="dog, cat")
    assert set(found["test"]) == {"cat", "dog"} and "2 of 4 classes, named" in made.text()


@pytest.fixture
def broken(raw: Path) -> Path:
    """A file that is no image, an empty one, and a JPEG whose end is missing: its header is whole."""
    (raw / "ant/day0/no.jpg").write_bytes(b"no picture")
    (raw / "bee/day0/empty.png").write_bytes(b"")
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(raw / "cat/cut.jpg")
    (raw / "cat/cut.jpg").write_bytes((raw / "cat/cut.jpg").read_bytes()[:2000])
    return raw


def test_unreadable_files_are_listed_and_not_copied(broken: Path) -> None:
    """Where the document's loader makes an unreadable image silently white, it is left out by name here."""
    made, _ = prepared(broken, validate=True)
    names = {"ant/day0/no.jpg", "bee/day0/empty.png", "cat/cut.jpg"}
    assert {name for name, _ in made.unreadable} == names
    with (broken.parent / "out" / "unreadable.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == names
    assert not {p.name for p in (broken.parent / "out").rglob("*.*")} & {"no.jpg", "empty.png", "cut.jpg"}
    assert "3 unreadable images were left out: " in made.text()
    assert sum(sum(counts.values()) for counts in made.counts.values()) == 69


def test_without_validate_only_headers_are_read(broken: Path) -> None:
    made, _ = prepared(broken)
    assert {name for name, _ in made.unreadable} == {"ant/day0/no.jpg", "bee/day0/empty.png"}
    assert len(list((broken.parent / "out").rglob("cut.jpg"))) == 1


def test_what_is_written_opens_as_it_was_divided(raw: Path) -> None:
    made, found = prepared(raw)
    dataset = open_dataset(DataConfig(path=made.path), 0)
    assert dataset.classes == tuple(SIZES) and dataset.facts.counts == found
    assert not any("ignored" in note for note in dataset.facts.notes), "our own records are no strangers"


def test_groups_stay_whole(raw: Path) -> None:
    """Ten people with six pictures each, of three classes."""
    root = raw.parent / "people"
    for person in range(10):
        for index in range(6):
            file = root / "xyz"[index % 3] / f"p{person}_{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (5, 5), person * 6 + index).save(file)
    made, _ = prepared(root, group=r"/(p\d+)_")
    where: dict[str, set[str]] = {}
    for path in (raw.parent / "out").rglob("*.png"):
        where.setdefault(path.name[:2], set()).add(path.parts[-3])
    assert all(len(splits) == 1 for splits in where.values()) and made.num_groups == 10
    assert made.leaks[0].images > 0 and "no --group" not in made.text()


def test_a_table_and_arrays_become_folders_too(raw: Path, tmp_path: Path) -> None:
    files = sorted(raw.rglob("*.png"))
    table = tmp_path / "table.csv"
    table.write_text(
        "\n".join(
            ["path,label", *(f"{f.relative_to(tmp_path)},is_{f.relative_to(raw).parts[0]}" for f in files)]
        )
    )
    made = ws.prepare("folders", str(table), output_dir=str(tmp_path / "from_table"))
    assert set(made.counts["val"]) == {f"is_{name}" for name in SIZES}
    assert sum(sum(counts.values()) for counts in made.counts.values()) == len(files)
    from warmstart.data.memory import keep

    images = np.random.default_rng(5).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    ws.prepare("folders", keep((images, np.arange(30) % 2)), output_dir=str(tmp_path / "from_arrays"))
    kept = {bytes(np.asarray(Image.open(path))) for path in (tmp_path / "from_arrays").rglob("*.png")}
    assert kept == {bytes(image) for image in images}


# ---- interruptions and places


def interrupted(monkeypatch: pytest.MonkeyPatch, raw: Path, how: type[BaseException]) -> None:
    encoded: Callable[[Pool, int], bytes] = Pool.encoded
    copies = Counter()

    def fails(pool: Pool, index: int) -> bytes:
        copies[index] += 1
        if index == 40 and copies[index] == 2:  # the first time it is read for its digest
            raise how
        return encoded(pool, index)

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "encoded", fails)
        prepared(raw)


def test_an_interrupted_preparation_is_none(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(monkeypatch, raw, KeyboardInterrupt)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    with pytest.raises(UserError, match="cannot write"):
        interrupted(monkeypatch, raw, OSError)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_what_a_killed_one_left_is_not_taken_over(
    raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        with pytest.raises(KeyboardInterrupt):
            interrupted(monkeypatch, raw, KeyboardInterrupt)
    left = raw.parent / ".out.unfinished"
    assert left.is_dir() and not (raw.parent / "out").exists()
    (left / "train" / "stranger.png").write_bytes(b"")
    prepared(raw)
    assert "removing what an interrupted preparation has left" in caplog.text
    assert not left.exists() and not list((raw.parent / "out").rglob("stranger.png"))


def test_a_second_time_is_refused(raw: Path) -> None:
    prepared(raw)
    with pytest.raises(UserError, match="holds a finished preparation"):
        prepared(raw, seed=1)
    (raw.parent / "mine").mkdir()
    (raw.parent / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="is in use"):
        prepared(raw, "mine")
    (raw.parent / "empty").mkdir()
    prepared(raw, "empty")


@pytest.mark.parametrize("place", ["", "sub", "ant/x", "../raw"])
def test_inside_of_the_data_is_refused(raw: Path, place: str) -> None:
    before = sorted(raw.rglob("*"))
    with pytest.raises(UserError, match="lies inside of"):
        ws.prepare("folders", str(raw), output_dir=str(raw / place))
    assert sorted(raw.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_classes": 5}, r"--num-classes 5: the data have 4: ant, bee, cat, dog[\s\S]*2 to 4"),
        ({"num_classes": 1}, "--num-classes 1"),
        ({"num_classes": 2, "classes": "ant,bee"}, "or --classes to name them"),
        ({"classes": "ant,bea"}, r"have no bea[\s\S]*Did you mean 'bee'"),
        ({"classes": "ant"}, "1 class is chosen"),
        ({"output": "x.parquet"}, "--output has no effect in prepare folders"),
        ({"embed": True}, "--embed has no effect in prepare folders"),
        ({"class_folder": "middle"}, "--class-folder middle"),
        ({"output_dir": None}, "has no --output-dir"),
        ({"annotations": None}, "no images are named; nothing is downloaded"),
        ({"annotations": "absent"}, "absent does not exist"),
        ({"train_ratio": 0.9, "val_ratio": 0.2}, "add up to more than 1"),
        ({"group": "(raw)"}, "matches none"),
        ({"group": "^(ant|bee|cat|dog)/"}, r"too few images, or groups, for train, val, test: ant has 30"),
    ],
)
def test_bad_input(raw: Path, given: dict[str, Any], told: str) -> None:
    values = {"annotations": str(raw), "output_dir": str(raw.parent / "new")} | given
    with pytest.raises(UserError, match=told):
        ws.prepare("folders", values.pop("annotations"), values.pop("output", None), **values)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_classes_too_small_or_without_a_name_for_a_folder(raw: Path) -> None:
    shutil.rmtree(raw / "dog" / "day0")
    with pytest.raises(UserError, match="dog has 2 different images, none for"):
        prepared(raw)
    (raw / "Ant").mkdir()
    shutil.copy(raw / "ant/day0/0.png", raw / "Ant/0.png")
    with pytest.raises(UserError, match=r"several that differ in case only \(ant\)"):
        prepared(raw, "other")
    table = raw.parent / "t.csv"
    table.write_text(
        "path,label\n" + "\n".join(f"raw/ant/day0/{i}.png,{'a/b' if i % 2 else 'c'}" for i in range(15))
    )
    with pytest.raises(UserError, match=r"cannot be names of folders: 'a/b'"):
        ws.prepare("folders", str(table), output_dir=str(raw.parent / "third"))


def test_nothing_readable(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        (tmp_path / "raw" / name).write_bytes(b"")
    for validate in (True, False):
        with pytest.raises(UserError, match="none of the 2 images can be read"):
            ws.prepare("folders", str(tmp_path / "raw"), output_dir=str(tmp_path / "x"), validate=validate)


def test_the_documents_command(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = raw.parent / "data" / "dogs"
    words = f"prepare folders {raw} --output_dir {out} --num_classes 3 --train_ratio .8 --validate --seed 42"
    assert main([*words.split(), "--no-download", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert list(found["counts"]) == list(SPLITS)
    assert all(set(counts) == {"ant", "bee", "cat"} for counts in found["counts"].values())
    assert "--no-download has no effect here: nothing is downloaded" in told.err
    assert main(["prepare", "folders", "--output_dir", str(out), "--num_classes", "10"]) == 2
    assert "no images are named; nothing is downloaded" in capsys.readouterr().err
