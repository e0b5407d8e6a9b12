"""Predictions of single files, folders and broken files."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import warmstart as ws
from warmstart.cli import main
from warmstart.errors import UserError


def test_a_prediction_does_not_depend_on_its_neighbours(small_run: Path) -> None:
    data = small_run.parent / "data"
    alone = ws.predict(str(small_run), [str(data / "owl" / "3.png")]).predictions[0]
    among = ws.predict(str(small_run), [str(data)], batch_size=7).predictions
    twin = next(p for p in among if p.id == alone.id)
    assert twin.classes == alone.classes
    assert twin.scores == pytest.approx(alone.scores, abs=1e-6)
    assert len(among) == 60


def test_predictions_agree_with_evaluate(small_run: Path) -> None:
    found = ws.evaluate(str(small_run), split="all")
    predicted = ws.predict(str(small_run), [str(small_run.parent / "data")], top_k=1).predictions
    by_name = {p.id.split("/data/")[1]: p.classes[0] for p in predicted}
    for name, row in zip(found.ids, found.outputs, strict=True):
        assert by_name[name] == found.classes[int(row.argmax())]


def test_output_files(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    images = [str(small_run.parent / "data" / "cat"), str(tmp_path / "broken.jpg")]
    for suffix in ("csv", "json"):
        result = ws.predict(str(small_run), images, top_k=2, output=str(tmp_path / "new" / f"p.{suffix}"))
        assert len(result.predictions) == 20
        assert [name for name, _ in result.unreadable] == [str(tmp_path / "broken.jpg")]
        assert "unreadable:" in result.text()
    with (tmp_path / "new" / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "class_1", "score_1", "class_2", "score_2"]
    record = json.loads((tmp_path / "new" / "p.json").read_text())
    assert [row["id"] for row in record["predictions"]] == [row["id"] for row in rows]
    assert record["unreadable"][0]["id"].endswith("broken.jpg")


def test_the_documents_command_line(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image and a folder at once; an unreadable one is named and counted, not taken for a white picture."""
    data, out = small_run.parent / "data", tmp_path / "out.json"
    shutil.copytree(data / "cat", tmp_path / "album")
    (tmp_path / "album" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    words = f"predict --checkpoint {small_run}/checkpoint-epoch-2 --image {data / 'owl' / '0.png'}"
    words += f" --image_dir {tmp_path / 'album'} --top_k 5 --output {out}"
    assert main(words.split()) == 0
    told = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["num_samples"] == len(record["predictions"]) == 21
    assert record["milliseconds_per_image"] == pytest.approx(1000 * record["seconds"] / 21, rel=0.01)
    assert f"21 images in {record['seconds']:.2f} s, " in told and "ms per image" in told
    assert "1 of 22 images could not be read and have no answer:" in told
    assert [row["id"] for row in record["unreadable"]] == [str(tmp_path / "album" / "broken.jpg")]
    assert not any("broken" in row["id"] for row in record["predictions"])
    assert len(record["predictions"][0]["top"]) == 3, "there are no more classes"


def test_nothing_readable_is_an_error(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        ws.predict(str(small_run), [str(tmp_path / "broken.jpg")])


def test_an_image_of_other_channels_is_unreadable_not_the_end(small_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.zeros((20, 24, 5), np.uint8))
    images = [str(small_run.parent / "data" / "cat"), str(tmp_path / "five.npy")]
    result = ws.predict(str(small_run), images)
    assert len(result.predictions) == 20
    assert result.unreadable == ((str(tmp_path / "five.npy"), "5 channels, and the model takes 1"),)
    with pytest.raises(UserError, match=r"none of the 1 images can be read; .*five\.npy: 5 channels"):
        ws.predict(str(small_run), images[1:])


def test_names_that_are_not_utf8_can_be_written(small_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_run.parent / "data", tmp_path / "data"))
    shutil.copy(copy / "cat" / "0.png", os.fsencode(copy / "cat") + b"/caf\xe9.png")
    for suffix in ("csv", "json"):
        target = tmp_path / f"p.{suffix}"
        ws.predict(str(small_run), [str(copy)], output=str(target))
        assert "xe9.png" in target.read_text(encoding="utf-8")
    found = ws.evaluate(str(small_run), str(copy), output_dir=str(tmp_path / "out"))
    assert found.num_samples == 61
