"""The page of a comparison: whose images it shows, what repeats it, what its colours and its level rest on."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import warmstart as ws
from warmstart.analysis.report.pictures import open_pictures
from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.reader import Run


@pytest.fixture(scope="module")
def other(pictures: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with the names of the run's own, which are wider than high: these are square."""
    folder = tmp_path_factory.mktemp("other") / "data"
    pictures(folder, {"cat": 20, "dog": 20, "owl": 20}, seed=3)
    for path in folder.glob("*/*.png"):
        Image.fromarray(np.asarray(Image.open(path))[:, :20]).save(path)
    return folder


@pytest.fixture(scope="module")
def elsewhere(small_run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on the other images."""
    folder = tmp_path_factory.mktemp("compared") / "elsewhere"
    ws.compare([f"{small_run}@6", str(small_run)], data=str(other), output_dir=str(folder), device="cpu")
    return folder


@pytest.fixture(scope="module")
def compared(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on the run's own val, whose best step was chosen there."""
    folder = tmp_path_factory.mktemp("compared") / "own"
    ws.compare([f"{small_run}@6", str(small_run)], split="val", output_dir=str(folder), device="cpu")
    return folder


def changed(folder: Path, to: Path, **values: object) -> Path:
    """A copy whose record says something else."""
    shutil.copytree(folder, to)
    record = json.loads((to / layout.COMPARISON).read_text())
    writer.write_json(to / layout.COMPARISON, {**record, **values})
    return to


def page_of(folder: Path, **options: str) -> str:
    return Path(ws.report(str(folder), **options).path).read_text(encoding="utf-8")  # type: ignore[arg-type]


def shapes(page: str) -> list[tuple[int, int]]:
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(one))).size for one in found]


def test_the_images_are_those_that_were_compared(elsewhere: Path, other: Path) -> None:
    page = page_of(elsewhere)
    shown = shapes(page)
    assert shown and all(width == height for width, height in shown), (
        "none of the run's own images, which have the same names"
    )
    assert f"--data {other}" in page


def test_images_that_have_changed_are_not_shown(
    small_run: Path, other: Path, elsewhere: Path, tmp_path: Path
) -> None:
    record = json.loads((elsewhere / layout.COMPARISON).read_text())["data"]
    moved = changed(elsewhere, tmp_path / "c", data={**record, "path": str(small_run.parent / "data")})
    found = ws.report(str(moved))
    assert any("or have changed" in line for line in found.left_out)
    assert not shapes(Path(found.path).read_text(encoding="utf-8"))
    own = Run(small_run).resolved["data"]["fingerprint"]
    retained = changed(
        elsewhere, tmp_path / "r", split="retain", data={**record, "path": None, "fingerprint": own}
    )
    assert not shapes(page_of(retained)), "of --retain, whose names may be those of the run's own"
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    resolved = json.loads((run / layout.RESOLVED).read_text())
    assert open_pictures(Run(run)).parts
    resolved["data"]["path"] = str(other)
    writer.write_json(run / layout.RESOLVED, resolved)
    with pytest.raises(UserError, match="have changed"):
        open_pictures(Run(run))


def test_the_command_says_how_labels_are_read(elsewhere: Path, tmp_path: Path) -> None:
    labels = {"label_columns": ["a", "b c"], "mask_remap": [[11, 255]], "ignore": 0}
    record = json.loads((elsewhere / layout.COMPARISON).read_text())["data"]
    found = ws.report(
        str(changed(elsewhere, tmp_path / "c", data={**record, "labels": labels})), images=False
    )
    page = html.unescape(Path(found.path).read_text(encoding="utf-8"))
    assert "--label-columns 'a,b c' --mask-remap 11=255 --ignore 0" in page


def test_the_level_is_explained(compared: Path, tmp_path: Path) -> None:
    page = page_of(compared)
    looks = json.loads((compared / layout.COMPARISON).read_text())["looks"]
    assert looks["num_pairs"] == 1 and looks["num_validations"] > 1
    assert f"{looks['num_validations']} validations to choose the best step from" in page
    assert "used before" not in page and "1 pairs" not in page and "too kind" in page
    looks |= {"num_pairs": 3, "largest_table": 4}
    more = page_of(changed(compared, tmp_path / "c", looks=looks))
    assert "3 different comparisons, a table of 4 models" in more


def test_colours_say_what_the_verdict_says(compared: Path, tmp_path: Path) -> None:
    row = {"name": "accuracy", "first": 0.5, "second": 0.6, "low": 0.01, "high": 0.2, "support": None}
    ece = {**row, "name": "ece", "first": 0.3, "second": 0.2, "low": -0.2, "high": -0.01}
    page = page_of(changed(compared, tmp_path / "c", direction=0, metrics=[row, ece]))
    verdict = page[page.index('id="verdict"') : page.index('id="metrics"')]
    assert "lower is better" in verdict
    assert len(re.findall(r'class="[^"]*\bgood\b', verdict)) == 1, "of ece alone"
    told = page[page.index('id="metrics"') : page.index('id="classes"')]
    assert len(re.findall(r"toned good", told)) == 1


def test_the_cost_has_multiply_adds(compared: Path) -> None:
    macs = json.loads((compared / layout.COMPARISON).read_text())["histories"][0]["macs"]
    page = page_of(compared)
    assert "million MACs" in page and f">{macs / 1e6:.2f}<" in page


@pytest.mark.parametrize("values", [{"metric": "nothing"}, {"notes": 3}, {"histories": [1, 2]}, {"data": 3}])
def test_damaged_records_are_said(elsewhere: Path, tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(changed(elsewhere, tmp_path / "c", **values)))


def test_damaged_samples_are_said(elsewhere: Path, tmp_path: Path) -> None:
    folder = changed(elsewhere, tmp_path / "c")
    (folder / "samples.csv").write_text("")
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(folder))


def test_an_evaluation_without_classes_is_damaged(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    for file in run.glob(f"evaluations/test@*/{layout.RESULTS}"):
        writer.write_json(file, {**json.loads(file.read_text()), "per_class": []})
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(run))


def test_noise_has_no_colour(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    gains = json.loads((run / layout.GAINS).read_text())
    writer.write_json(run / layout.GAINS, [{**gain, "p": 0.9} for gain in gains])
    page = page_of(run)
    table = page[page.index('id="metrics"') : page.index('id="by_class"')]
    assert "toned plain" in table and "toned good" not in table and "toned bad" not in table
