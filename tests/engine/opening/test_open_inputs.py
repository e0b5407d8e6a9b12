"""A second round leaves every image in the split that the first one put it in, whatever has become of the data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from warmstart.analysis.samples import open_evaluation_set
from warmstart.engine import train
from warmstart.errors import Interrupted
from warmstart.inference.restore import restore
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]


def splits(run: Run) -> dict[str, set[str]]:
    return {split: {n for n, s in run.splits.items() if s == split} for split in ("train", "val", "test")}


def add(root: Path, num: int, prefix: str = "new") -> None:
    for place in sorted(root.iterdir()):
        for number in range(num):
            pixels = np.full((16, 16), 40 * number % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{prefix}{number}.png")


@pytest.fixture
def growing(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "growing"))


def test_images_stay_on_their_side_when_the_data_grow(
    finetune: FINETUNE, growing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"data": str(growing), "max_steps": 1}
    first = finetune("first", **given)
    assert {n: len(ids) for n, ids in splits(first).items()} == {"train": 24, "val": 12, "test": 6}
    add(growing, 5)
    (growing / "ant" / "00.png").unlink()
    second = finetune("second", weights=str(first.path), seed=3, **given)
    assert "41 of 56 images are known to" in caplog.text and "15 are new" in caplog.text
    for split, ids in splits(first).items():
        assert ids <= splits(second)[split], "a grandchild may meet again what is missing now"
    new = {split: splits(second)[split] - ids for split, ids in splits(first).items()}
    assert sum(map(len, new.values())) == 15 and all(new.values()), "the ratios divide what is new"
    third = finetune("third", weights=str(second.path), seed=4, **given)
    assert third.splits == second.splits
    assert "training images of" not in caplog.text

    built = restore(str(third.path), torch.device("cpu")).built
    own = open_evaluation_set(third, None, "test", built)
    assert set(own.ids) == splits(third)["test"] - {"ant/00.png"} and own.is_own
    add(growing, 1, "late")
    grown = open_evaluation_set(third, None, "test", built)
    assert not grown.is_own and "have changed since the run" in caplog.text
    assert not set(grown.ids) & splits(third)["train"]


def test_changed_labels_move_no_image(finetune: FINETUNE, growing: Path) -> None:
    table = growing / "labels.csv"
    names = sorted(path.relative_to(growing).as_posix() for path in growing.rglob("*.png"))
    table.write_text("image,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    given: dict[str, Any] = {"data": str(table), "max_steps": 1}
    first = finetune("first", **given)
    table.write_text(table.read_text().replace("ant/03.png,ant", "ant/03.png,bee"))
    second = finetune("second", weights=str(first.path), **given)
    assert second.splits == first.splits
    assert second.resolved["data"]["fingerprint"] != first.resolved["data"]["fingerprint"]


def test_a_resumed_run_takes_its_own_splits(
    settings: Callable[..., Any], finetune: FINETUNE, growing: Path, interrupt_at: Callable[..., None]
) -> None:
    first = finetune("first", data=str(growing), max_steps=1)
    add(growing, 5)
    shutil.copytree(first.path, growing.parent / "copy")
    interrupt_at(1)
    with pytest.raises(Interrupted):
        finetune("second", data=str(growing), weights=str(growing.parent / "copy"), max_steps=3, seed=9)
    shutil.rmtree(growing.parent / "copy")  # the parent may be gone by now
    train.resume(str(growing.parent / "second"), {})
    run = Run(growing.parent / "second")
    assert run.status["state"] == "finished"
    assert splits(first)["train"] <= splits(run)["train"]


def test_another_data_set_is_divided_anew_and_what_it_tests_on_is_looked_at(
    finetune: FINETUNE, growing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = finetune("first", data=str(growing), max_steps=1)
    other = tmp_path / "other"
    known = sorted(splits(first)["train"])[:6]
    for name in known:
        (other / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(growing / name, other / "test" / name)
    for place in ("ant", "bee", "cat"):
        (other / "train" / place).mkdir(parents=True)
        (other / "test" / place).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            shutil.copy(growing / place / "01.png", other / "train" / place / f"x{number}.png")
        shutil.copy(growing / place / "02.png", other / "test" / place / "y.png")
    table = other / "list.csv"
    rows = sorted(other.rglob("*.png"))
    lines = [f"{p.relative_to(other).as_posix()},{p.parent.name}\n" for p in rows]
    table.write_text("image,label\n" + "".join(lines))
    second = finetune("second", weights=str(first.path), data=str(other), max_steps=1)
    assert "images are known to" not in caplog.text, "other ids: test/ant/.. is not ant/.."
    assert set(first.splits) < set(second.splits), "for a third round on the first data"


def test_a_given_test_split_with_training_images_is_named(
    finetune: FINETUNE, growing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = finetune("first", data=str(growing), max_steps=1)
    table = growing / "given.csv"
    names = sorted(path.relative_to(growing).as_posix() for path in growing.rglob("*.png"))
    words = {name: ("test", "val", "train")[number % 3] for number, name in enumerate(names)}
    table.write_text("image,label,split\n" + "".join(f"{n},{n[:3]},{words[n]}\n" for n in names))
    finetune("second", weights=str(first.path), data=str(table), max_steps=1)
    num = sum(words[name] == "test" for name in splits(first)["train"])
    assert f"{num} of 14 test images have the ids of training images of" in caplog.text
